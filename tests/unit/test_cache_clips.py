"""bench.cache_clips: each clip is the same for the same seed and shows what its purpose says."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from bench.cache_clips import CAMERA_CUTS, CAMERA_FRAMES, CLIPS, CUT_FRAMES, PAUSE_FRAME, clip, source_frame
from bench.cache_figures import Expression, draw_talking_head, draw_walker, still_portrait
from bench.cache_pictures import CLEAN, PANORAMAS, Sensor, centred, panorama, photo, window
from train.make_sample import FRAMES, SHOTS

SIZE = (64, 48)


def _mean_change(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Return the mean absolute difference in levels."""
    return float(np.abs(a.astype(int) - b).mean())


def _shift_px(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Return how far the picture moved, by phase correlation of its grey values."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in (a, b)]
    hann = cv2.createHanningWindow(grey[0].shape[::-1], cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(*grey, hann)
    return math.hypot(x, y)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_its_size_and_is_the_same_for_the_same_seed(name: str) -> None:
    frames = clip(name, 4, SIZE, seed=3)
    assert len(frames) == 4
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in frames)
    assert all(np.array_equal(a, b) for a, b in zip(frames, clip(name, 4, SIZE, seed=3), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(frames, clip(name, 2, SIZE, seed=3), strict=False)), "a prefix"
    other = np.array_equal(frames[0], clip(name, 1, SIZE, seed=4)[0])
    assert other is (name in ("camera", "repeats", "paused")), "a file is the same for every seed"
    assert frames[0].std() > 15, "a picture, not a plain colour"


def test_a_still_camera_s_frames_differ_by_its_noise_only() -> None:
    frames = np.stack(clip("still", 64, SIZE)).astype(np.float64)
    mean, sigma = frames.mean(0), frames.std(0, ddof=1)
    inner = (mean > 20) & (mean < 235)
    expected = np.sqrt(4 + 0.01 * mean + 1 / 12)  # reading, photons, rounding
    assert (sigma[inner] / expected[inner]).mean() == pytest.approx(1, abs=0.02)
    lag = ((frames[1:] - mean) * (frames[:-1] - mean)).mean() / (frames - mean).var()
    assert abs(lag) < 0.03, "noise of one frame says nothing of the next one's"
    assert np.abs(frames.mean((1, 2, 3)) - frames.mean()).max() < 0.2


def test_exposure_flickers_slowly() -> None:
    frames = np.stack(clip("flicker", 60, SIZE)).astype(np.float64)
    brightness = frames.mean((1, 2, 3)) / frames.mean()
    assert 0.02 < brightness.max() - brightness.min() < 0.05
    assert np.abs(np.diff(brightness)).max() < 0.004
    assert Sensor(flicker=0.02).exposure(0) == 1


def test_a_figure_walks_before_a_ground_that_stands_still() -> None:
    ground = centred(photo(46), (96, 96))
    first, later = (draw_walker(ground, frame) for frame in (0, 9))
    for drawn in (first, later):
        changed = np.abs(drawn - ground).max(-1) > 0
        assert 0.05 < changed.mean() < 0.30
        assert (drawn >= 0).all()
        assert (drawn <= 255).all()
        assert not changed[: int(0.28 * 96)].any(), "nothing above the head"
    columns = [np.nonzero((np.abs(drawn - ground).max(-1) > 0).any(0))[0].mean() for drawn in (first, later)]
    assert columns[1] - columns[0] > 5
    moved = (np.abs(first - later).max(-1) > 4).mean()
    assert 0.03 < moved < 0.35
    assert not np.array_equal(draw_walker(ground, 4), draw_walker(ground, 13)), "legs swing"


def test_a_talking_head_moves_only_what_it_should() -> None:
    size = (128, 128)
    rest = draw_talking_head(size, Expression(sway=(0, 0), jaw=0, lids=0))
    assert np.array_equal(rest, still_portrait(size))
    mouth = np.abs(draw_talking_head(size, Expression(sway=(0, 0), jaw=6, lids=0)) - rest).max(-1)
    eyes = np.abs(draw_talking_head(size, Expression(sway=(0, 0), jaw=0, lids=6)) - rest).max(-1)
    head = np.abs(draw_talking_head(size, Expression(sway=(2, 0), jaw=0, lids=0)) - rest).max(-1)
    assert mouth[56:62, 60:72].mean() > 20
    assert mouth[:44].max() == 0
    assert eyes[30:40, 48:62].mean() > 5
    assert eyes[48:].max() == 0
    assert head[8:60, 40:90].mean() > 5
    for part in (mouth, eyes, head):
        assert part[112:].max() == 0, "the uniform stands still"
        assert part[:, :10].max() == 0, "the ground stands still"


def test_a_pan_moves_by_fractions_of_a_pixel_and_fast_motion_by_tens() -> None:
    slow, quick = clip("pan", 3, (192, 192)), clip("fast", 2, (192, 192))
    assert _shift_px(slow[0], slow[1]) == pytest.approx(0.8, abs=0.35)
    assert _shift_px(slow[0], slow[2]) == pytest.approx(1.6, abs=0.5)
    assert _shift_px(quick[0], quick[1]) > 25
    assert _mean_change(quick[0], quick[1]) > 3 * _mean_change(slow[0], slow[1])


def test_a_window_is_resampled_exactly() -> None:
    x = np.arange(80, dtype=np.float32)
    wave = np.broadcast_to((100 + 80 * np.sin(x / 5))[None, :, None], (40, 80, 3)).astype(np.float32)
    whole = window(wave, 7, 3, (32, 16))
    assert np.allclose(whole, wave[3:19, 7:39], atol=1e-3)
    shifted = window(wave, 7.375, 3, (32, 16))
    assert np.abs(shifted[0, :, 0] - (100 + 80 * np.sin((x[7:39] + 0.375) / 5))).max() < 0.5


@pytest.mark.parametrize("first", PANORAMAS)
def test_a_panorama_goes_around(first: int) -> None:
    ring = panorama(first)
    assert ring.shape == (210, 5 * 217, 3)
    strips = np.split(ring, 5, axis=1)

    def joint(left: int, right: int) -> float:
        return float(np.abs(strips[left % 5][:, -1] - strips[right % 5][:, 0]).mean())

    in_turn = sum(joint(view, view + 1) for view in range(5))
    assert in_turn < min(sum(joint(view, view + skip) for view in range(5)) for skip in (2, 3, 4))


def test_cuts_are_where_the_table_says() -> None:
    frames = clip("cuts", 38, SIZE, seed=1)
    changes = [_mean_change(a, b) for a, b in itertools.pairwise(frames)]
    assert CLIPS["cuts"].cuts(38) == [12, 24, 36]
    found = [number for number, change in enumerate(changes, start=1) if change > 15]
    assert found == [CUT_FRAMES, 2 * CUT_FRAMES, 3 * CUT_FRAMES]


def test_film_repeats_exactly_three_and_two_times_in_turn() -> None:
    frames = clip("repeats", 15, SIZE)
    assert [source_frame(frame) for frame in range(10)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    same = [number for number in range(1, 15) if np.array_equal(frames[number], frames[number - 1])]
    assert same == CLIPS["repeats"].repeats(15) == [1, 2, 4, 6, 7, 9, 11, 12, 14]
    film = clip("camera", 6, SIZE)
    assert all(np.array_equal(frame, film[source_frame(at)]) for at, frame in enumerate(frames))


def test_a_pause_repeats_from_there_on() -> None:
    frames = clip("paused", 14, SIZE)
    same = [number for number in range(1, 14) if np.array_equal(frames[number], frames[number - 1])]
    assert same == CLIPS["paused"].repeats(14) == list(range(PAUSE_FRAME + 1, 14))
    assert len(clip("paused", 3, SIZE)) == 3


def test_the_camera_s_cuts_are_the_file_s() -> None:
    assert (FRAMES, (SHOTS[0].frames, SHOTS[0].frames + SHOTS[1].frames)) == (CAMERA_FRAMES, CAMERA_CUTS)
    assert CLIPS["camera"].cuts(290) == [54, 102, 185, 233]
    frames = clip("camera", 240, (32, 32))
    changes = [_mean_change(a, b) for a, b in itertools.pairwise(frames)]
    assert [number for number, change in enumerate(changes, start=1) if change > 25] == [54, 102, 185, 233]
    assert CLIPS["repeats"].cuts(140) == [135], "film frame 54"


def test_a_sensor_without_noise_only_rounds() -> None:
    levels = np.array([[[0.4, 127.6, 300.0]]], np.float32)
    random = np.random.default_rng(0)
    assert CLEAN.capture(levels, 5, random).tolist() == [[[0, 128, 255]]]
    with pytest.raises(ValueError, match="at least 0"):
        Sensor(shot=-1)


@pytest.mark.parametrize(
    ("name", "frames", "size", "message"),
    [("fog", 4, SIZE, "choose from still"), ("pan", 0, SIZE, "at least 1 frame"), ("pan", 1, (8, 64), "16 px")],
)
def test_what_cannot_be_made_is_refused(name: str, frames: int, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip(name, frames, size)
