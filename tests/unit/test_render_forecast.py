"""What a render says of its length and needs, and what it refuses because it could not end."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from app.media.containers import ANIMATIONS, CONTAINERS
from app.render import forecast as forecasts
from app.render.forecast import CannotEndError, Forecast, Meters, check_output_size
from app.render.job import render
from app.render.record import part_folder
from app.render.request import RenderRequest
from pipelines.core.controls import Control
from pipelines.core.errors import OutOfMemoryError, OutputError
from tests.fakes.engine import FakeEngine

GIB = 2**30


class Clock:
    """A time and a disk that the test sets."""

    def __init__(self, free_disk: float = 1e12) -> None:
        self.now, self.free_disk = 0.0, free_disk

    @property
    def meters(self) -> Meters:
        return Meters(
            clock=lambda: self.now,
            used=lambda: round(3.5 * GIB),
            free=lambda: 17 * GIB,
            free_disk=lambda folder: round(self.free_disk),
        )


def watched(folder: Path, total: int | None, clock: Clock, said: list[str], *, copies: int = 1) -> Forecast:
    folder.mkdir(exist_ok=True)
    return Forecast(folder, total=total, done=0, copies=copies, say=said.append, meters=clock.meters)


def make(forecast: Forecast, folder: Path, clock: Clock, frames: int, *, seconds: float, size: int = 1000) -> None:
    """Let frames of `size` bytes come one by one."""
    for _ in range(frames):
        clock.now += seconds
        number = len(list(folder.iterdir()))
        (folder / f"{number:06d}.png").write_bytes(b"x" * size)
        forecast.delivered(1, number + 1)


@pytest.mark.parametrize(
    ("total", "seconds", "frames", "expected"),
    [
        (240, 8.9, 3, "Takes about 35 min more for 238 frames (8.9 s a frame)"),
        (240, 60.0, 2, "Takes about 4.0 h more for 238 frames (60 s a frame)"),
        (5000, 0.125, 12, "Takes about 10 min more for 4991 frames (0.12 s a frame)"),
        (None, 2.0, 4, "Takes 2 s a frame"),
    ],
)
def test_length_and_memory_are_said_once_after_the_first_frames(
    tmp_path: Path, total: int | None, seconds: float, frames: int, expected: str
) -> None:
    said: list[str] = []
    clock = Clock()
    forecast = watched(tmp_path / "out", total, clock, said)
    make(forecast, tmp_path / "out", clock, frames, seconds=seconds)
    make(forecast, tmp_path / "out", clock, 2, seconds=seconds)
    assert len(said) == 1
    assert said[0].startswith(expected)
    assert "; uses 3.5 GiB of memory (17.0 GiB are free)" in said[0]


def test_frames_that_come_in_chunks_are_measured_over_chunks(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    forecast = watched(tmp_path / "out", 120, clock, said)
    for _ in range(3):
        clock.now += 6
        forecast.delivered(12, 0)
    assert said[0].startswith("Takes about 48 s more for 96 frames (0.5 s a frame)")


def test_a_render_that_is_over_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock()
    make(watched(tmp_path / "out", 2, clock, said), tmp_path / "out", clock, 2, seconds=5)
    assert said == []


def test_a_disk_that_cannot_hold_the_render_ends_it_early_with_what_fits(tmp_path: Path) -> None:
    clock = Clock(free_disk=200_000)
    forecast = watched(tmp_path / "out", 1000, clock, [])
    with pytest.raises(CannotEndError) as caught:
        make(forecast, tmp_path / "out", clock, 20, seconds=1)
    assert "about 200 of them would fit" in str(caught.value)
    assert "continue with --resume" in str(caught.value)


def test_a_disk_that_may_become_full_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    clock = Clock(free_disk=700_000)
    make(watched(tmp_path / "out", 1000, clock, said), tmp_path / "out", clock, 20, seconds=1)
    assert said[0].startswith("The disk may become full")
    assert len(said) == 2


def test_a_disk_that_others_fill_is_noticed_later(tmp_path: Path) -> None:
    clock = Clock()
    forecast = watched(tmp_path / "out", 1000, clock, [], copies=2)
    make(forecast, tmp_path / "out", clock, 20, seconds=1)
    clock.free_disk = 1000
    with pytest.raises(CannotEndError):
        make(forecast, tmp_path / "out", clock, 40, seconds=1)


@pytest.mark.parametrize("kind", [*CONTAINERS.values(), *ANIMATIONS.values(), None])
def test_frames_too_large_to_encode_are_refused_with_a_size_that_fits(kind: object) -> None:
    with pytest.raises(OutOfMemoryError, match=r"--out-size (\d+)x(\d+) would fit") as caught:
        check_output_size(kind, (16000, 8000), free_bytes=GIB)  # type: ignore[arg-type]
    width, height = map(int, caught.value.remedy.split()[1].split("x"))
    assert width / height == pytest.approx(2, abs=0.02)
    check_output_size(kind, (width, height), free_bytes=GIB)  # type: ignore[arg-type]


def test_sides_that_no_encoder_takes_are_refused() -> None:
    with pytest.raises(OutputError, match=r"at most 16384 a side\. Give --out-size 16384x1638"):
        check_output_size(CONTAINERS[".mp4"], (20000, 2000), free_bytes=2**50)


def prompt_only(output: Path, **changes: object) -> RenderRequest:
    request = RenderRequest(
        source=None, output=output, control=Control(), model="fake", frames=40, frame_rate=Fraction(10)
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def test_a_refused_render_keeps_its_frames_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasts, "_MEASURED_S", 0.0)
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Forecast, "_check_disk", refuse)
        with pytest.raises(CannotEndError, match="no room"):
            render(prompt_only(output), lambda *_, **__: FakeEngine(), [].append)
    kept = len(list(output.glob("*.png")))
    assert 0 < kept < 40
    said: list[str] = []
    assert render(prompt_only(output, resume=True), lambda *_, **__: FakeEngine(), said.append) == 0
    assert len(list(output.glob("*.png"))) == 40
    assert any(sentence.startswith("Takes about") for sentence in said)


def refuse(forecast: Forecast, written: int) -> str:
    raise CannotEndError("There is no room.", "Make some.")


def test_an_output_size_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    request = prompt_only(tmp_path / "out.mp4", out_size=(40000, 400))
    with pytest.raises(OutputError, match="at most 16384"):
        render(request, lambda *_, **__: FakeEngine(), [].append)
    assert not (tmp_path / "out.mp4").exists()
    assert not part_folder(tmp_path / "out.mp4").exists()
