"""Animated GIFs: one palette for the clip, times that players keep, and frames that survive a stop."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.media.animation_writer import AnimationPlan, AnimationWriter
from app.media.containers import ANIMATIONS
from pipelines.core.errors import OutputError


def opened(output: Path, rate: Fraction | int, *, keep: bool = False, resumable: bool = True) -> AnimationWriter:
    scratch = output.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    plan = AnimationPlan(kind=ANIMATIONS[".gif"], size=(65, 47), time_base=1 / Fraction(rate), resumable=resumable)
    return AnimationWriter(output, scratch, plan, keep=keep)


def add(writer: AnimationWriter, first: int, end: int) -> None:
    for index in range(first, end):
        writer.write(np.full((47, 65, 3), (200, 4 * index, 30), np.uint8), index, 1)


def shown(file: Path) -> tuple[list[int], list[np.ndarray]]:
    """The durations in ms, and the pictures."""
    durations, pictures = [], []
    with Image.open(file) as image:
        assert image.info["loop"] == 0
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    return durations, pictures


@pytest.mark.parametrize(
    ("rate", "frames", "left_out"),
    [(Fraction(10), 20, 0), (Fraction(24), 24, 0), (Fraction(50), 50, 0), (Fraction(60), 60, 20)],
)
def test_length_and_colours_are_kept_at_any_rate(tmp_path: Path, rate: Fraction, frames: int, left_out: int) -> None:
    writer = opened(tmp_path / "a.gif", rate)
    add(writer, 0, frames)
    writer.finish(complete=True)
    durations, pictures = shown(tmp_path / "a.gif")
    assert sum(durations) == pytest.approx(1000 * frames / rate, abs=10)
    assert min(durations) >= 20  # players show shorter ones for 100 ms
    assert len(pictures) == frames - left_out
    assert np.abs(pictures[0] - (200, 0, 30)).max() <= 4
    assert np.abs(pictures[-1] - (200, 4 * (frames - 1), 30)).max() <= 8
    said = writer.remarks()
    assert bool(said) == bool(left_out)
    assert all("at most 50 frames a second: 20 of 60 frames are left out" in sentence for sentence in said)


def test_times_that_are_not_even_are_kept(tmp_path: Path) -> None:
    writer = opened(tmp_path / "a.gif", 100)
    for index, pts in enumerate((7, 12, 47, 50)):
        writer.write(np.full((47, 65, 3), 60 * index, np.uint8), pts, 25)
    writer.finish(complete=True)
    assert shown(tmp_path / "a.gif")[0] == [50, 350, 30, 250]


def test_a_single_picture_and_one_colour(tmp_path: Path) -> None:
    writer = opened(tmp_path / "a.gif", 24)
    add(writer, 0, 1)
    writer.finish(complete=True)
    assert len(shown(tmp_path / "a.gif")[1]) == 1


def test_a_stopped_animation_plays_and_goes_on(tmp_path: Path) -> None:
    writer = opened(tmp_path / "a.gif", 20)
    add(writer, 0, 7)
    writer.suspend()
    assert len(shown(tmp_path / "a.gif")[1]) == 7
    again = opened(tmp_path / "a.gif", 20, keep=True)
    assert again.frames == 7
    add(again, 7, 20)
    again.finish(complete=True)
    durations, pictures = shown(tmp_path / "a.gif")
    assert durations == [50] * 20
    assert np.abs(pictures[-1] - (200, 76, 30)).max() <= 8


def test_a_killed_animation_goes_on_from_its_frames(tmp_path: Path) -> None:
    """Killed after the time of a frame was written and before its picture was."""
    writer = opened(tmp_path / "a.gif", 20)
    add(writer, 0, 5)
    (tmp_path / "scratch" / "frames" / "000004.png").unlink()
    again = opened(tmp_path / "a.gif", 20, keep=True)
    assert again.frames == 4
    add(again, 4, 8)
    again.finish(complete=True)
    assert shown(tmp_path / "a.gif")[0] == [50] * 8


@pytest.mark.parametrize(
    ("resumable", "frames", "remedy"),
    [
        (True, 3, "3 frames are kept; continue with --resume."),
        (False, 3, "Nothing was written; check the folder, or choose another container."),
    ],
)
def test_an_animation_that_cannot_be_made_says_what_is_kept(
    tmp_path: Path, resumable: bool, frames: int, remedy: str
) -> None:
    (tmp_path / "a.gif").mkdir()
    writer = opened(tmp_path / "a.gif", 20, resumable=resumable)
    add(writer, 0, frames)
    with pytest.raises(OutputError) as caught:
        writer.finish(complete=True)
    assert caught.value.remedy == remedy
