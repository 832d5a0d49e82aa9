"""What moved on an input, and which windows cover it."""

from __future__ import annotations

import numpy as np
import pytest

from cache.features.motion import MotionMap
from cache.features.windows import Window, covering, raster, window_sizes

SIZES = window_sizes((12, 12), (1 / 3, 1 / 2, 2 / 3))


def mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Cells of a 12x12 grid. boxes: first row and column, rows, columns."""
    moved = np.zeros((12, 12), dtype=bool)
    for row, column, rows, columns in boxes:
        moved[row : row + rows, column : column + columns] = True
    return moved


def test_sizes_are_shares_of_the_grid_smallest_first() -> None:
    assert SIZES[0] == (4, 4)
    assert (12, 12) not in SIZES
    assert {(4, 12), (12, 4), (6, 8)} <= set(SIZES)
    areas = [rows * columns for rows, columns in SIZES]
    assert areas == sorted(areas)


@pytest.mark.parametrize(
    ("boxes", "windows"),
    [
        ((), ()),
        (((5, 5, 2, 2),), (Window(4, 4, (4, 4)),)),
        (((0, 0, 1, 1),), (Window(0, 0, (4, 4)),)),
        (((11, 11, 1, 1),), (Window(8, 8, (4, 4)),)),
        (((3, 2, 5, 3),), (Window(3, 2, (6, 4)),)),
        (((0, 0, 2, 2), (10, 10, 2, 2)), (Window(0, 0, (4, 4)), Window(8, 8, (4, 4)))),
        (((2, 2, 2, 2), (2, 5, 2, 2)), (Window(1, 2, (4, 6)),)),  # one window costs less than two
    ],
)
def test_few_small_windows_cover_what_moved(
    boxes: tuple[tuple[int, int, int, int], ...], windows: tuple[Window, ...]
) -> None:
    assert covering(mask(*boxes), SIZES, most_cells=90, most_windows=3) == windows


def test_too_much_motion_has_no_cover() -> None:
    assert covering(mask((0, 0, 12, 12)), SIZES, most_cells=144, most_windows=3) is None
    assert covering(mask((1, 1, 7, 7)), SIZES, most_cells=63, most_windows=3) is None
    assert covering(mask((1, 1, 7, 7)), SIZES, most_cells=64, most_windows=3) is not None
    corners = mask((0, 0, 1, 1), (0, 11, 1, 1), (11, 0, 1, 1), (11, 11, 1, 1))
    assert covering(corners, SIZES, most_cells=79, most_windows=3) is None
    assert covering(corners, SIZES, most_cells=79, most_windows=4) is not None


def test_any_mask_is_covered_within_the_grid() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        moved = draw.random((12, 12)) < draw.choice([0.01, 0.05, 0.2])
        windows = covering(moved, SIZES, most_cells=120, most_windows=3)
        covered = np.zeros_like(moved)
        for window in windows or ():
            assert 0 <= window.row <= 12 - window.size[0]
            assert 0 <= window.column <= 12 - window.size[1]
            covered[window.slices] = True
        assert windows is None or not (moved & ~covered).any()


def test_a_raster_covers_the_grid() -> None:
    covered = np.zeros((12, 10), dtype=int)
    windows = raster((12, 10), (4, 4))
    for window in windows:
        covered[window.slices] += 1
    assert covered.min() == 1
    assert len(windows) == 9


def motion(levels: float = 4.0, noise_factor: float = 6.0, margin: int = 0) -> MotionMap:
    """For pictures of 64x96, latents of 4x4 pixels, cells of 2x2 latents."""
    return MotionMap(64, 96, factor=4, cell=2, levels=levels, noise_factor=noise_factor, margin=margin)


def test_a_picture_that_was_taken_has_not_moved_until_it_differs() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    still = motion()
    assert still.grid == (8, 12)
    assert still.moved(np.full_like(picture, 255)).all()  # nothing was taken yet
    still.moved(picture)
    still.take()
    assert not still.moved(picture).any()
    changed = picture.copy()
    changed[17:20, 33:36] = 255 - changed[17:20, 33:36]
    moved = still.moved(changed)
    assert moved[2, 4]
    assert moved.sum() == 1


def test_a_margin_is_in_latents() -> None:
    grown = motion(margin=2)
    picture = np.full((64, 96, 3), 100, dtype=np.uint8)
    grown.moved(picture)
    grown.take()
    picture[32:36, 40:44] = 200  # latent (8, 10): rows 6 to 10, columns 8 to 12 with the margin
    rows, columns = np.nonzero(grown.moved(picture))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 5, 4, 6)


def test_only_the_windows_that_were_computed_are_taken() -> None:
    part = motion()
    dark, bright = np.full((64, 96, 3), 10, dtype=np.uint8), np.full((64, 96, 3), 200, dtype=np.uint8)
    part.moved(dark)
    part.take()
    assert part.moved(bright).all()
    part.take((Window(1, 2, (3, 4)),))
    moved = part.moved(bright)
    assert not moved[1:4, 2:6].any()
    assert moved.sum() == 8 * 12 - 12


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_noise_is_no_motion(sigma: float) -> None:
    draw = np.random.default_rng(1)
    scene = draw.integers(30, 220, (64, 96, 3)).astype(float)

    def seen() -> np.ndarray:
        return np.clip(np.round(scene + draw.normal(0, sigma, scene.shape)), 0, 255).astype(np.uint8)

    watched = motion()
    watched.moved(seen())
    watched.take()
    assert not any(watched.moved(seen()).any() for _ in range(5))
    scene[20:40, 30:60] += 25
    assert watched.moved(seen())[2:5, 4:7].all()


def test_when_everything_moves_that_is_not_taken_for_noise() -> None:
    draw = np.random.default_rng(2)
    watched = motion()
    watched.moved(draw.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    watched.take()
    shifted = draw.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    assert watched.moved(np.ascontiguousarray(shifted)).mean() > 0.9
