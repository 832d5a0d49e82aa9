"""The similarity filter: stochastic, seeded, counts consecutive skips."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.image.similarity import SimilarityFilter

SHAPE = (4, 4, 3)
STILL = np.full(SHAPE, 200, dtype=np.uint8)


def _filter(seed: int = 0) -> SimilarityFilter:
    return SimilarityFilter(seed, 48)


def test_the_first_frame_is_taken_and_repeats_are_skipped_up_to_the_limit() -> None:
    judge = _filter()
    assert [judge.skips(STILL, 0.98, 3) for _ in range(9)] == [False, True, True, True, False, True, True, True, False]


def test_no_skips_allowed_takes_everything() -> None:
    judge = _filter()
    assert not any(judge.skips(STILL, 0.98, 0) for _ in range(5))


@pytest.mark.parametrize("threshold", [1.0, 1.5])
def test_threshold_one_and_above_takes_everything(threshold: float) -> None:
    judge = _filter()
    assert not any(judge.skips(STILL, threshold, 10) for _ in range(5))


def test_an_accepted_frame_starts_the_count_again() -> None:
    """Two skips, a different picture, two skips: with at most three in a row no frame is forced."""
    judge, other = _filter(), 255 - STILL
    pictures = [STILL, STILL, STILL, other, other, other]
    assert [judge.skips(p, 0.5, 3) for p in pictures] == [False, True, True, False, True, True]


def test_share_of_skips_is_the_stated_probability() -> None:
    """p_skip = 1 - (1 - cos) / (1 - threshold), against a frame at a known angle that is never accepted itself."""
    base = np.full(SHAPE, 255, dtype=np.uint8)
    near = base.copy()
    near.reshape(-1)[:6] = 0  # 6 of 48 values are -1 instead of 1: cos = 36 / 48
    threshold, cosine = 0.5, 0.75
    skipped, trials = 0, 400
    for seed in range(trials):
        judge = _filter(seed)
        judge.skips(base, threshold, 10)
        skipped += judge.skips(near, threshold, 10)
    assert skipped / trials == pytest.approx(1 - (1 - cosine) / (1 - threshold), abs=0.08)


def test_dissimilar_frames_are_never_skipped() -> None:
    judge = _filter()
    assert not any(judge.skips(p, 0.98, 10) for p in (STILL, 255 - STILL, STILL, 255 - STILL))


def test_the_same_seed_judges_alike_and_reset_starts_again() -> None:
    pictures = [np.random.default_rng(i // 2).integers(90, 255, SHAPE, dtype=np.uint8) for i in range(40)]
    one, two = _filter(7), _filter(7)
    first = [one.skips(p, 0.9, 10) for p in pictures]
    assert first == [two.skips(p, 0.9, 10) for p in pictures]
    one.reset()
    assert first == [one.skips(p, 0.9, 10) for p in pictures]
    assert any(first)


def test_mid_grey_frames_do_not_divide_by_zero() -> None:
    judge = SimilarityFilter(0, 2)
    dark = np.array([0, 0], dtype=np.uint8)
    assert not judge.skips(dark, 0.9, 1)
    assert judge.skips(dark, 0.9, 1)
