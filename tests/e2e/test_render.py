"""`zoetrope render` as a process: killed, interrupted, on a full disk, and with the bundled model end to end.

Kills and full disks use the fake engine, whose frames identify their source frame; everything else is real.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from app.render.job import render
from app.render.record import part_folder
from app.render.request import RenderRequest
from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control
from pipelines.core.preparation import NoPreparation
from pipelines.load import load_engine
from tests.fakes.clips import make_clip, play

ROOT = Path(__file__).resolve().parents[2]
FAKE = """
import sys
from pathlib import Path
from app.render.job import render
from app.render.request import RenderRequest
from pipelines.core.controls import Control
from pipelines.core.errors import ZoetropeError
from tests.fakes.engine import FakeEngine
source, output, tick_s, *flags = sys.argv[1:]
resume = "resume" in flags
request = RenderRequest(source=Path(source), output=Path(output), control=Control(), model="fake", resume=resume)
def load(*_, **__):
    return FakeEngine(tick_s=float(tick_s))
try:
    sys.exit(render(request, load, lambda said: sys.stderr.write(said + "\\n")))
except ZoetropeError as error:
    sys.stderr.write(f"{type(error).__name__}: {error}\\n")
    sys.exit(1)
"""
DOOR = """
import argparse, sys
from app.cli import render
from pipelines.core.errors import ZoetropeError
parser = argparse.ArgumentParser()
render.add_parser(parser.add_subparsers())
options = parser.parse_args(sys.argv[1:])
try:
    sys.exit(options.run(options))
except ZoetropeError as error:
    sys.stderr.write(f"{type(error).__name__}: {error}\\n")
    sys.exit(1)
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def ran(code: str, *arguments: object, status: int = 0) -> str:
    """Return the standard error of a finished run."""
    process = started(code, *arguments)
    _, said = process.communicate(timeout=200)
    assert process.returncode == status, said
    return said


def wait_until_playable(output: Path, frames: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        assert process.poll() is None, "it ended before it was stopped"
        if output.is_dir() and len(list(output.glob("*.png"))) >= frames:
            return
        if output.is_file() and output.stat().st_size > 0:
            try:
                if len(play(output).greys) >= frames:
                    return
            except (av.error.FFmpegError, IndexError):
                pass  # the first piece is not there yet
        time.sleep(0.05)
    raise AssertionError("no frames in 30 s")


STOPPED = [
    (name, number) for name in ("out.mp4", "out.mkv", "out.webm", "out") for number in (signal.SIGKILL, signal.SIGINT)
]
ALWAYS = [("out.mp4", signal.SIGKILL), ("out", signal.SIGKILL), ("out.mkv", signal.SIGINT)]


@pytest.mark.parametrize(
    ("name", "number"),
    [pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.soak) for case in STOPPED],
)
def test_a_stopped_process_leaves_a_file_that_plays_and_resumes(
    tmp_path: Path, name: str, number: signal.Signals
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=120, rate=25)
    whole, output = tmp_path / f"whole-{name}", tmp_path / name
    ran(FAKE, clip, whole, 0)
    process = started(FAKE, clip, output, 0.04)
    wait_until_playable(output, 25, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
    if output.is_dir():
        assert 25 <= len(list(output.glob("*.png"))) < 120
    else:
        left = play(output)
        assert 25 <= len(left.greys) < 120
        assert left.indices == [k % 40 for k in range(len(left.greys))]
        assert left.sound_s == pytest.approx(len(left.greys) / 25, abs=0.3)
    ran(FAKE, clip, output, 0, "resume")
    assert not part_folder(output).exists()
    if output.is_dir():
        assert len(list(output.iterdir())) == 120
        for file in whole.iterdir():
            assert file.read_bytes() == (output / file.name).read_bytes()
        return
    expected, resumed = play(whole), play(output)
    assert resumed.indices == expected.indices == [k % 40 for k in range(120)]
    assert resumed.times_s == pytest.approx(expected.times_s, abs=0.0011)
    assert resumed.duration_s == pytest.approx(expected.duration_s, abs=0.002)
    assert resumed.sound_codec == expected.sound_codec
    assert resumed.sound_s == pytest.approx(expected.sound_s, abs=0.001)
    assert np.abs(np.array(resumed.greys) - np.array(expected.greys)).max() < 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs more rights; test_media_writer limits the file size instead")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "name", ["out.mp4", *(pytest.param(name, marks=pytest.mark.soak) for name in ("out.mkv", "out"))]
)
def test_a_full_disk_is_said_and_what_was_written_plays(tmp_path: Path, small_disk: Path, name: str) -> None:
    def noisy(index: int, size: tuple[int, int]) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)

    clip = make_clip(tmp_path / "clip.mp4", frames=300, draw=noisy)
    output = small_disk / name
    said = ran(FAKE, clip, output, 0, status=1)
    assert "OutputError: The disk is full" in said
    assert "Traceback" not in said
    frames = len(list(output.glob("*.png"))) if output.is_dir() else len(play(output).greys)
    assert frames >= 25
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ran(FAKE, clip, output, 0, "resume")
    assert (len(list(output.glob("*.png"))) if output.is_dir() else len(play(output).greys)) == 300


def test_the_bundled_model_end_to_end(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=5, rate=5, size=(320, 180))
    said = ran(DOOR, "render", clip, tmp_path / "out.mp4", "--prompt", "a robot on the beach", "--device", "cpu")
    assert "mini-image at " in said
    source, played = play(clip), play(tmp_path / "out.mp4")
    assert len(played.greys) == 5
    assert played.times_s == pytest.approx(source.times_s, abs=0.001)
    assert played.duration_s == pytest.approx(source.duration_s, abs=0.1)
    assert played.sound_s == pytest.approx(source.sound_s, abs=0.03)


class _Kept:
    """An engine that stays open between renders, and requests a stop at a given tick."""

    preparation = NoPreparation()

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ticks_left = -1

    def open(self, control: Control | None = None, frame_rate: Fraction = Fraction(24)) -> Stream:
        return self.engine.open(control=control, frame_rate=frame_rate)

    def tick(self) -> None:
        self.ticks_left -= 1
        if self.ticks_left == 0:
            signal.raise_signal(signal.SIGINT)
        self.engine.tick()

    def close(self) -> None:
        """Stay open for the next render."""


@pytest.mark.parametrize(
    ("prompt_only", "words"),
    [
        (False, {}),
        (False, {"seed_lock": False}),
        (True, {"noise_walk_deg": 10.0}),
        (True, {"seed_lock": False}),
    ],
)
def test_frames_after_a_resume_are_those_of_one_run(
    tmp_path: Path, small_engine: Engine, prompt_only: bool, words: dict[str, object]
) -> None:
    """With the bundled model, to the pixel, for locked, numbered and walking noise."""
    clip = make_clip(tmp_path / "clip.mp4", frames=14, rate=10, sound="")
    request = RenderRequest(
        source=None if prompt_only else clip,
        frames=14 if prompt_only else None,
        output=tmp_path / "whole",
        control=Control.of({"prompt": "a robot", "depth": 3, "steps": 2, **words}),
        model="fake",
    )
    engine = _Kept(small_engine)
    assert render(request, lambda *_, **__: engine, lambda _: None) == 0
    request = replace(request, output=tmp_path / "out")
    engine.ticks_left = 6
    assert render(request, lambda *_, **__: engine, lambda _: None) == 130
    before = len(list((tmp_path / "out").iterdir()))
    assert 1 < before < 12
    assert render(replace(request, resume=True), lambda *_, **__: engine, lambda _: None) == 0
    files = sorted((tmp_path / "whole").iterdir())
    assert len(files) == len(list((tmp_path / "out").iterdir())) == 14
    whole = [np.asarray(Image.open(file)).astype(int) for file in files]
    resumed = [np.asarray(Image.open(tmp_path / "out" / file.name)).astype(int) for file in files]
    # Every slot is computed by itself; only the make-up of the batch differs around the joint, and with it rounding.
    assert max(np.abs(a - b).max() for a, b in zip(whole, resumed, strict=True)) <= 2
    if words:
        assert np.abs(whole[before] - whole[0]).max() > 4  # noise of the wrong number would be seen


@pytest.fixture(scope="module")
def small_engine() -> Iterator[Engine]:
    engine = load_engine("mini-image", device="cpu", dtype="float32", width=64, height=64)
    yield engine
    engine.close()


def test_unknown_words_and_a_bad_option_are_said(tmp_path: Path) -> None:
    said = ran(DOOR, "render", tmp_path / "none.mp4", tmp_path / "out.mp4", "--prompt", "a robt", status=1)
    assert "'robt' (try 'robot'" in said
    assert "InputError: There is no file or folder" in said
    assert "unrecognized arguments: --promt" in ran(DOOR, "render", "a", "b", "--promt", "x", status=2)


def test_help_needs_no_heavy_import() -> None:
    code = DOOR.replace(
        "options = parser", "assert not {'torch', 'av', 'diffusers'} & set(sys.modules)\noptions = parser"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, "render", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--similarity-filter" in process.stdout
