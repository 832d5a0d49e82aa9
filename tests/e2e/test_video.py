"""A video model of random weights, loaded from its folder: rendered, run live, and a live take rendered again."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import render as door
from app.media.video_reader import VideoReader
from app.render.job import render
from app.takes.reader import read_take
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionAccounting, SessionProxy, SessionState
from pipelines.core.controls import Control
from pipelines.files.loader_options import LoaderOptions
from pipelines.load import load_engine
from tests.fakes.clips import make_clip
from tests.fakes.tiny_video_model import HEIGHT_PX, WIDTH_PX, tiny_video_model

ROOT = Path(__file__).resolve().parent.parent.parent
RATE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_video_model(tmp_path_factory.mktemp("models") / "tiny", actions=True)


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[WorkerHandle]:
    options = WorkerOptions(model=str(model), engine=LoaderOptions(device="cpu", dtype="float32"), threads=1)
    with WorkerHandle(options) as client:
        client.wait_ready(120)
        yield client


def zoetrope(*arguments: str) -> str:
    """Run a command in a separate process. Returns its output."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def rendered(*arguments: str) -> None:
    """Run `zoetrope render` in this process."""
    parser = argparse.ArgumentParser()
    door.add_parser(parser.add_subparsers())
    request = door.request_from_options(parser.parse_args(["render", *arguments]))
    assert render(request, load_engine, lambda _: None) == 0


def shown(file: Path) -> list[np.ndarray]:
    return [frame.image for frame in VideoReader(file).frames()]


@pytest.mark.soak
def test_render_begins_with_a_picture_and_goes_on_from_the_prompt_at_the_model_s_rate(
    model: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "first.png"
    Image.fromarray(np.full((40, 80, 3), (200, 40, 10), np.uint8)).save(picture)
    first = ("--prompt-only", "--seconds", "1.5", "--first-picture", str(picture))
    said = zoetrope("render", *first, str(tmp_path / "on.mp4"), "--model", str(model), "--device", "cpu")
    assert "tiny at 48x32" in said
    pictures = shown(tmp_path / "on.mp4")
    assert len(pictures) == 1.5 * RATE
    assert pictures[0].shape == (HEIGHT_PX, WIDTH_PX, 3)


def test_render_redraws_a_clip(model: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=23, rate=16)
    options = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-policy", "window")
    rendered(str(clip), str(tmp_path / "out.mp4"), *options, "--prompt", "a cat")
    assert len(shown(tmp_path / "out.mp4")) == 23


def test_render_of_a_story_in_three_shots(model: Path, tmp_path: Path) -> None:
    """Chunks of 9, 12, ... frames begin at 0, 0.5625 and 1.3125 s: the pictures of each shot differ from there on."""
    cuts = [
        {"at_s": 0.5, "prompt": "the table", "scene_cut": True, "seed": 4},
        {"at_s": 1.3, "prompt": "a cat", "scene_cut": True, "seed": 5},
    ]
    (tmp_path / "story.json").write_text(json.dumps([{"at_s": 0, "prompt": "a cat"}, *cuts]))
    engine = ("--model", str(model), "--device", "cpu", "--dtype", "float32", "--kv-policy", "dual")
    length = ("--prompt-only", "--seconds", "1.6", "--seed", "3")
    rendered(*length, f"{tmp_path}/told/", *engine, "--timeline", str(tmp_path / "story.json"))
    rendered(*length, f"{tmp_path}/plain/", *engine, "--prompt", "a cat")
    told, plain = (
        [np.asarray(Image.open(file)).astype(int) for file in sorted((tmp_path / name).iterdir())]
        for name in ("told", "plain")
    )
    assert len(told) == len(plain) == round(1.6 * RATE)
    apart = [int(np.abs(a - b).max()) for a, b in zip(told, plain, strict=True)]
    assert max(apart[:9]) == 0
    assert min(apart[9:]) > 2  # the model of random weights hardly reads its prompt; it feels its seed


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.005)


def at_rest(session: SessionProxy) -> SessionAccounting:
    """Return the counts once they have not changed for half a second."""
    since_s, counts = time.monotonic(), session.accounting

    def rests() -> bool:
        nonlocal since_s, counts
        if session.accounting != counts:
            since_s, counts = time.monotonic(), session.accounting
        return time.monotonic() - since_s > 0.5

    wait_for(rests)
    return counts


class Arrivals:
    """Arrival times of a session's frames, in seconds."""

    def __init__(self, session: SessionProxy) -> None:
        self.times: list[float] = []
        self._session = session
        session.listen(self._came)

    def _came(self) -> None:
        if self._session.newest(after=len(self.times)) is not None:
            self.times.append(time.monotonic())


def even(times: list[float]) -> bool:
    """Whether frames of two seconds arrived evenly paced: a chunk of 12 at once would give 11 gaps of 0."""
    gaps = np.diff(times)
    paced = len(times) == 2 * RATE and 0.9 / RATE < np.mean(gaps) < 1.1 / RATE
    return bool(paced and np.median(gaps) > 0.5 / RATE)


def test_live_from_a_prompt_frames_leave_evenly_and_every_frame_is_counted(client: WorkerHandle) -> None:
    session = client.open(control=Control.of({"prompt": "a cat"}), prompt_only=True)
    arrivals = Arrivals(session)
    wait_for(lambda: session.state is SessionState.LIVE)
    assert session.info is not None
    assert (session.info.engine, session.info.frame_rate) == ("video", RATE)
    wait_for(lambda: even(arrivals.times[-2 * RATE :]))
    session.set_control(Control(paused=True))
    counts = at_rest(session)
    assert counts.in_flight <= session.info.max_frames  # a chunk that the pause met half-way stays where it is
    assert counts.taken == counts.out + counts.dropped + counts.in_flight
    assert counts.dropped == 0
    session.set_control(Control(paused=False))
    wait_for(lambda: session.accounting.out > counts.out)
    session.close()


def test_live_from_a_camera_every_answer_names_its_input(client: WorkerHandle) -> None:
    session = client.open(control=Control.of({"prompt": "a cat", "chunk_frames": 1}), prompt_only=False)
    wait_for(lambda: session.state is SessionState.LIVE)
    picture = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    deadline_s, number = time.monotonic() + 60, 0
    while session.count <= 20:  # how many inputs are dropped is the machine's affair
        assert time.monotonic() < deadline_s, "it never came"
        picture[:] = 4 * (number := (number + 1) % 60)
        session.submit(picture)
        time.sleep(0.02)
    newest = session.newest()
    assert newest is not None
    assert newest[1].source_seq is not None
    counts = session.accounting
    assert counts.taken == counts.out + counts.dropped + counts.skipped + counts.in_flight
    session.close()


CHANGES: tuple[dict[str, object], ...] = (
    {"prompt": "the table", "prompt_change": "cut"},
    {"chunk_frames": 1, "camera_x": 1.0},
    {"push_y": -0.5},
    {"scene_cut": True},
    {"prompt": "a cat on the table", "prompt_change": "flush"},
    {"seed": 7, "chunk_steps": 2},
)


@pytest.mark.soak
def test_a_take_replays_to_the_frames_that_were_live(client: WorkerHandle, tmp_path: Path) -> None:
    session = client.open(control=Control.of({"prompt": "a cat"}), prompt_only=True)
    wait_for(lambda: session.count > 3)
    session.start_take(tmp_path / "take")
    for change in CHANGES:
        session.set_control(Control.of(change))
        time.sleep(0.7)
    session.set_source(prompt_only=False)
    picture = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    for number in range(40):
        picture[:, : number + 1] = 5 * number
        session.submit(picture)
        time.sleep(0.02)
    session.stop_take()
    session.close()
    take = read_take(tmp_path / "take")
    said = zoetrope("render", "--take", str(tmp_path / "take"), str(tmp_path / "again") + "/")
    assert len(take.hashes) > 30
    assert f"{len(take.hashes)} frames identical to the live ones, 0 different" in said
