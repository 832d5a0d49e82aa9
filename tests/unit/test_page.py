"""The page: widgets match the table, presets set them, prompts are commented on, nothing external is loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import httpx
import numpy as np
import pytest

from app.media.picture import cover
from app.page import page as page_module
from app.page.page import Page
from app.page.prompts import Prompts, world_examples
from app.page.widgets import (
    ELSEWHERE,
    SECTIONS,
    inapplicable_elements,
    label_of,
    make_widget,
    propagation_text,
    stream_controls,
)
from app.server.front import page_routes
from app.worker.handle import WorkerHandle
from app.worker.messages import WorkerPreparation
from app.worker.meter import Meter
from app.worker.process import WorkerOptions
from pipelines.core.control_table import CONTROLS
from pipelines.core.preparation import PreparationStatus
from pipelines.files.hub import BUNDLED_FOLDER
from pipelines.files.loader_options import LoaderOptions

ACTIONS = tuple(name for name in ELSEWHERE if name != "prompt")

WORLD = BUNDLED_FOLDER / "mini-image" / "world.json"


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=16, height=16))
    with WorkerHandle(options, max_sessions=1) as client:
        client.wait_ready(60)
        yield client


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
        assert (widget.minimum, widget.maximum, widget.value) == (spec.minimum, spec.slider_end, spec.default)


def test_a_control_with_two_classes_says_both() -> None:
    assert propagation_text(CONTROLS["prompt"]) == "next slot, on a cut next tick"
    assert label_of(CONTROLS["noise_walk_deg"]) == "Noise walk (degrees per frame) · next slot"


def test_what_means_nothing_to_a_kind_of_model_is_hidden_with_its_section() -> None:
    assert {"zt-section-video", "zt-rewind_to", "zt-paused"} <= set(inapplicable_elements("image"))
    hidden = set(inapplicable_elements("video"))
    assert {"zt-section-engine", "zt-depth", "zt-steps"} <= hidden
    assert not {"zt-strength", "zt-seed", "zt-section-look", "zt-paused"} & hidden


def test_the_page_is_built(client: WorkerHandle) -> None:
    async def build() -> gr.Blocks:  # without a running loop Blocks makes some of its own and leaves them open
        return Page(client, Prompts()).build()

    blocks = asyncio.run(build())
    assert not blocks.analytics_enabled
    labels = {getattr(block, "label", None) for block in blocks.blocks.values()}
    assert {label_of(spec) for spec in stream_controls() if spec.name not in ACTIONS} <= labels


def test_no_event_of_the_page_asks_gradio_s_server(client: WorkerHandle) -> None:
    async def build() -> gr.Blocks:
        return Page(client, Prompts.of_world(WORLD)).build()

    events = [*asyncio.run(build()).fns.values()]
    assert len(events) > len(stream_controls()) - len(ACTIONS)
    assert [event.js for event in events if event.fn is not None] == []
    assert all(event.js for event in events)


def test_the_page_is_told_how_the_networks_run(client: WorkerHandle) -> None:
    application = fastapi.FastAPI()
    application.include_router(page_routes(client, Prompts.of_world(WORLD)))

    async def ask() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as http:
            return str((await http.get("/page/status")).json()["execution"])

    assert asyncio.run(ask()) == ""
    status = PreparationStatus(runs="PyTorch", builds="int8 (OpenVINO)", percent=40, step="decode: converting")
    client._handle(WorkerPreparation(status=status))
    assert asyncio.run(ask()) == "PyTorch · int8 (OpenVINO): building, 40 % (decode: converting)"
    client._handle(WorkerPreparation(status=PreparationStatus(runs="int8 (OpenVINO)")))
    assert asyncio.run(ask()) == "int8 (OpenVINO)"


def test_the_page_s_own_routes(client: WorkerHandle) -> None:
    application = fastapi.FastAPI()
    application.include_router(page_routes(client, Prompts.of_world(WORLD)))

    async def ask() -> tuple[dict[str, Any], dict[str, str], int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test") as http:
            controls = (await http.get("/page/controls")).json()["controls"]
            notice = (await http.post("/page/notice", json={"prompt": "a <b>qwrtzp</b>"})).json()
            return controls, notice, (await http.post("/page/notice", json={"prompt": "x" * 3000})).status_code

    controls, notice, too_long = asyncio.run(ask())
    ready = client.status.ready
    assert ready is not None
    assert controls["strength"] == ready.controls["strength"]
    assert {*controls, "prompt"} == {spec.name for spec in stream_controls()}
    assert "qwrtzp" in notice["html"]
    assert "<b>" not in notice["html"]
    assert too_long == 422


@pytest.mark.parametrize(
    "name",
    sorted(file.name for file in (Path(page_module.__file__).parent / "web").glob("*.js")),
)
def test_the_page_s_scripts_name_no_other_host(name: str) -> None:
    text = (Path(page_module.__file__).parent / "web" / name).read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?|wss?)://", text)


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
