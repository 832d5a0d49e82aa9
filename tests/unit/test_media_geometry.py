"""Pad, crop and stretch: the source's position in the target, and the inverse."""

from __future__ import annotations

import numpy as np
import pytest

from app.media.geometry import Aspect, Box, Placement, even, output_placement, resized


@pytest.mark.parametrize(
    ("source", "aspect", "pixel_aspect", "taken", "placed"),
    [
        ((160, 90), Aspect.PAD, 1.0, (0, 0, 160, 90), (0, 14, 64, 36)),
        ((90, 160), Aspect.PAD, 1.0, (0, 0, 90, 160), (14, 0, 36, 64)),
        ((160, 90), Aspect.CROP, 1.0, (35, 0, 90, 90), (0, 0, 64, 64)),
        ((160, 90), Aspect.STRETCH, 1.0, (0, 0, 160, 90), (0, 0, 64, 64)),
        ((80, 90), Aspect.PAD, 2.0, (0, 0, 80, 90), (0, 14, 64, 36)),  # anamorphic: shown as 160 x 90
        ((80, 90), Aspect.CROP, 2.0, (17, 0, 45, 90), (0, 0, 64, 64)),
        ((1, 1000), Aspect.PAD, 1.0, (0, 0, 1, 1000), (31, 0, 1, 64)),
        ((1000, 1), Aspect.CROP, 1.0, (499, 0, 1, 1), (0, 0, 64, 64)),
    ],
)
def test_where_a_source_lies(
    source: tuple[int, int],
    aspect: Aspect,
    pixel_aspect: float,
    taken: tuple[int, int, int, int],
    placed: tuple[int, int, int, int],
) -> None:
    plan = Placement.plan(source, (64, 64), aspect, pixel_aspect)
    assert (plan.taken.left, plan.taken.top, plan.taken.width, plan.taken.height) == taken
    assert (plan.placed.left, plan.placed.top, plan.placed.width, plan.placed.height) == placed
    image = np.full((source[1], source[0], 3), 200, np.uint8)
    result = plan.apply(image)
    assert result.shape == (64, 64, 3)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert (plan.placed.of(result) == 200).all()
    assert result.sum() == plan.placed.width * plan.placed.height * 3 * 200  # black elsewhere


def test_applying_copies_even_when_nothing_changes() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    assert not np.shares_memory(Placement.plan((8, 8), (8, 8), Aspect.PAD).apply(image), image)
    assert not np.shares_memory(resized(image, (8, 8)), image)


def test_bars_are_cut_off_on_the_way_back_to_the_source_size() -> None:
    there = Placement.plan((160, 90), (64, 64), Aspect.PAD)
    back = output_placement((64, 64), there, (160, 90), Aspect.PAD)
    image = np.zeros((64, 64, 3), np.uint8)
    there.placed.of(image)[:] = 99
    assert (back.apply(image) == 99).all()


def test_bars_stay_in_an_output_of_the_native_size() -> None:
    there = Placement.plan((160, 90), (64, 64), Aspect.PAD)
    back = output_placement((64, 64), there, (64, 64), Aspect.PAD)
    assert back.taken == Box(left=0, top=0, width=64, height=64)


@pytest.mark.parametrize("aspect", list(Aspect))
def test_a_prompt_only_picture_goes_to_any_size(aspect: Aspect) -> None:
    plan = output_placement((64, 64), None, (100, 50), aspect)
    assert plan.apply(np.ones((64, 64, 3), np.uint8)).shape == (50, 100, 3)


def test_even_sides() -> None:
    assert even((321, 240)) == (322, 240)
