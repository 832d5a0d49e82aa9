"""The page: widgets follow the table, tabs do what the callbacks ask, prompts are commented on, nothing is fetched."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import gradio as gr
import numpy as np
import pytest

from app.messages import WorkerNotice
from app.meter import Meter
from app.page import Page
from app.page_controls import ELSEWHERE, SECTIONS, label_of, make_widget, propagation_text, stream_controls
from app.picture import cover, jpeg
from app.playback import Playback, check_video
from app.prompts import Prompts, world_examples
from app.tabs import Source, Tab, Tabs
from app.worker import WorkerOptions
from app.worker_client import BusyError, WorkerClient
from pipelines.control_table import CONTROLS
from pipelines.errors import ControlError, InputError, ZoetropeError
from pipelines.hub import BUNDLED_FOLDER

WORLD = BUNDLED_FOLDER / "mini-image" / "world.json"


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def tabs() -> Iterator[Tabs]:
    client = WorkerClient(WorkerOptions(model="identity", engine={"width": 16, "height": 16}), max_sessions=1)
    client.start()
    client.wait_ready(60)
    made = Tabs(client)
    yield made
    made.stop()
    client.stop()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=Fraction(25))
        track.width, track.height, track.pix_fmt = 32, 32, "yuv420p"
        for value in range(0, 250, 50):
            picture = np.full((32, 32, 3), value, np.uint8)
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    return path


def test_every_control_of_a_stream_has_one_place() -> None:
    placed = [name for section in SECTIONS for name in section.names] + list(ELSEWHERE)
    assert sorted(placed) == sorted(spec.name for spec in stream_controls())


@pytest.mark.parametrize("name", [name for section in SECTIONS for name in section.names])
def test_widgets_carry_range_and_propagation(name: str) -> None:
    spec = CONTROLS[name]
    widget = make_widget(spec, spec.default)
    assert widget.label == label_of(spec)
    assert spec.propagation.value in str(widget.label)
    if isinstance(widget, gr.Slider):
        assert (widget.minimum, widget.maximum, widget.value) == (spec.minimum, spec.maximum, spec.default)


def test_a_control_with_two_classes_says_both() -> None:
    assert propagation_text(CONTROLS["prompt"]) == "next slot, on a cut next tick"
    assert label_of(CONTROLS["noise_walk_deg"]) == "Noise walk (degrees a frame) · next slot"


def test_the_page_is_built(tabs: Tabs) -> None:
    async def build() -> gr.Blocks:  # without a running loop Blocks makes some of its own and leaves them open
        return Page(tabs, Prompts()).build()

    blocks = asyncio.run(build())
    assert not blocks.analytics_enabled
    labels = {getattr(block, "label", None) for block in blocks.blocks.values()}
    assert {label_of(spec) for spec in stream_controls()} <= labels


def test_a_tab_streams_from_the_prompt(tabs: Tabs) -> None:
    tab = tabs.open()
    tab.change({"prompt": "a cat", "strength": 0.4})
    tab.start()
    until(lambda: "jpeg" in tab.poll("", 0))
    answer = tab.poll("", 0)
    assert base64.b64decode(str(answer["jpeg"]))[:2] == b"\xff\xd8"
    assert (answer["running"], answer["live"], answer["phase"]) == (True, True, "ready")
    numbers = [int(str(answer[n])) for n in ("taken", "out", "dropped", "skipped", "in_flight")]
    assert numbers[0] == sum(numbers[1:])
    with pytest.raises(ControlError, match="strength cannot be 7"):
        tab.change({"strength": 7.0})
    with pytest.raises(BusyError):
        tabs.open().start()
    tab.stop()
    assert not tab.running
    tabs.close(tab.name)
    with pytest.raises(ZoetropeError, match="Reload it"):
        tabs.get(tab.name)


def test_a_camera_picture_comes_back_with_the_browser_s_time(tabs: Tabs) -> None:
    tab = tabs.open()
    tab.choose(Source.CAMERA, None)
    tab.start()
    until(lambda: bool(tab.poll("", 0).get("live")))
    for junk in ("", "%%%", base64.b64encode(b"no picture").decode(), "A" * 3_000_000):
        tab.camera(junk, 1.0)
    tab.camera(base64.b64encode(jpeg(np.full((30, 40, 3), 200, np.uint8))).decode(), 1234.5)
    answers: list[dict[str, object]] = []

    def came() -> bool:
        answers.append(tab.poll("", 0))
        return "jpeg" in answers[-1]

    until(came)
    assert answers[-1]["camera_ms"] == 1234.5
    assert tab.poll("", 0)["taken"] == 1
    tab.stop()


def test_a_video_is_played_in_a_loop(tabs: Tabs, clip: Path) -> None:
    tab = tabs.open()
    tab.choose(Source.VIDEO, None)
    with pytest.raises(InputError, match="No video was chosen"):
        tab.start()
    tab.choose(Source.VIDEO, clip)
    tab.start()
    until(lambda: int(str(tab.poll("", 0).get("taken", 0))) > 7)  # it has five pictures
    tab.stop()


@pytest.mark.parametrize("content", [b"", b"this is text, not video\n" * 50])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"film\.mp4 cannot be read as video"):
        check_video(path)
    with pytest.raises(InputError):
        Playback(path, lambda _: True)


def test_a_tab_that_nobody_watches_is_stopped(tabs: Tabs) -> None:
    tab = tabs.open()
    tab.start()
    tabs.sweep(time.monotonic())
    assert tab.running
    tabs.sweep(time.monotonic() + 60)
    assert not tab.running
    assert "nobody was watching" in str(tab.poll("", 0)["message"])


def test_orders_to_the_stage_are_numbered(tabs: Tabs) -> None:
    """The browser may hear of the start after it heard of the camera: the newest counts."""
    tab = tabs.open()
    first = tab.order()
    tab.choose(Source.CAMERA, None)
    chosen = tab.order()
    tab.start()
    started = tab.order()
    tab.stop()
    assert [(o["running"], o["camera"]) for o in (first, chosen, started)] == [
        (False, False),
        (False, True),
        (True, True),
    ]
    assert [o["number"] for o in (first, chosen, started)] == [1, 2, 3]


def test_notices_of_the_engine_stay_on_the_page() -> None:
    client = WorkerClient(WorkerOptions(model="identity"))
    client._handle(WorkerNotice(text="It needs an LCM-LoRA."))
    assert Tab(client).poll("", 0)["facts"] == "not started · It needs an LCM-LoRA."


def test_examples_stay_inside_the_model_s_world() -> None:
    prompts = Prompts.of_world(WORLD)
    assert len(prompts.examples) >= 3
    assert [prompts.notice(example) for example in prompts.examples] == [""] * len(prompts.examples)
    assert "&#x27;qwrtzp&#x27;" in prompts.notice("a qwrtzp")
    assert "No prompt yet" in prompts.notice("  ")
    assert world_examples(WORLD) == prompts.examples


def test_cover_keeps_the_middle() -> None:
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255
    assert (cover(picture, 10, 10) == 255).all()
    assert cover(picture, 7, 5).shape == (5, 7, 3)
    assert cover(picture, 64, 64).shape == (64, 64, 3)


def test_the_meter_forgets() -> None:
    meter = Meter(window_s=1.0)
    for i in range(11):
        meter.arrived(i * 100_000_000, i * 100_000_000 - 20_000_000)
    reading = meter.read(1_000_000_000)
    assert reading.frame_rate == pytest.approx(10.0)
    assert reading.latency_ms == pytest.approx(20.0)
    assert meter.read(9_000_000_000).frame_rate == 0.0
