"""Owns the geometry of recomputed windows: which rectangles of a grid cover what changed.

A grid cell is a square of latents; windows begin and end at cells. Independent of tensors, networks and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
Size: TypeAlias = tuple[int, int]
"""(rows, columns) in cells."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of cells. row, column: of its first cell. size: (rows, columns)."""

    row: int
    column: int
    size: Size

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.size[0] * self.size[1]

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its part of an array [rows, columns]."""
        return slice(self.row, self.row + self.size[0]), slice(self.column, self.column + self.size[1])


def window_sizes(grid: Size, sides: Sequence[float]) -> tuple[Size, ...]:
    """Return the sizes of windows for a grid, smallest first: all whose sides are these shares of the grid's, or all of
    it. The grid itself is none of them."""
    rows, columns = ({max(1, round(length * side)) for side in (*sides, 1.0)} for length in grid)
    found = {(height, width) for height in rows for width in columns} - {grid}
    return tuple(sorted(found, key=lambda size: (size[0] * size[1], size)))


def covering(moved: Mask, sizes: Sequence[Size], *, most_cells: int, most_windows: int) -> tuple[Window, ...] | None:
    """Return windows that together cover every cell of `moved`, or None if they would have more than `most_cells`
    cells or be more than `most_windows`. Empty for an empty mask.

    One window where it is no larger than two; the mask is split at the widest empty band of rows or columns.
    """
    windows = _cover(moved, sizes, most_windows)
    if windows is None or sum(window.cells for window in windows) > most_cells:
        return None
    return windows


def raster(grid: Size, size: Size) -> tuple[Window, ...]:
    """Return windows of one size that together cover a grid, row by row; the last of a row or column ends with it."""
    rows, columns = ([*range(0, length - side, side), length - side] for length, side in zip(grid, size, strict=True))
    return tuple(Window(row, column, size) for row in rows for column in columns)


def _cover(moved: Mask, sizes: Sequence[Size], most: int) -> tuple[Window, ...] | None:
    box = _bounds(moved)
    if box is None:
        return ()
    if most < 1:
        return None
    whole = _smallest(box, sizes, moved.shape)
    split = _split(moved, box) if most > 1 else None
    if split is None:
        return None if whole is None else (whole,)
    first = _cover(split[0], sizes, most - 1)
    second = None if first is None else _cover(split[1], sizes, most - len(first))
    if first is None or second is None:
        return None if whole is None else (whole,)
    parts = (*first, *second)
    return (whole,) if whole is not None and whole.cells <= sum(part.cells for part in parts) else parts


def _bounds(moved: Mask) -> tuple[int, int, int, int] | None:
    """Return (first row, first column, rows, columns) of the smallest box around the set cells."""
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


def _smallest(box: tuple[int, int, int, int], sizes: Sequence[Size], grid: tuple[int, ...]) -> Window | None:
    """Return the smallest window around a box, centred on it as far as the grid allows."""
    row, column, rows, columns = box
    for size in sizes:
        if size[0] >= rows and size[1] >= columns:
            first = (row - (size[0] - rows) // 2, column - (size[1] - columns) // 2)
            top, left = (
                min(max(start, 0), length - side) for start, length, side in zip(first, grid, size, strict=True)
            )
            return Window(top, left, size)
    return None


def _split(moved: Mask, box: tuple[int, int, int, int]) -> tuple[Mask, Mask] | None:
    """Split a mask at the widest band of empty rows or columns inside its box; None if there is none."""
    widest, axis, cut = 0, 0, 0
    for along in (0, 1):
        filled = np.flatnonzero(moved.any(axis=1 - along))
        gaps = np.diff(filled)
        if len(gaps) and gaps.max() - 1 > widest:
            widest, axis, cut = int(gaps.max()) - 1, along, int(filled[int(gaps.argmax())]) + 1
    if not widest:
        return None
    parts = moved.copy(), moved.copy()
    for part, hidden in zip(parts, (slice(cut, None), slice(None, cut)), strict=True):
        part[hidden if axis == 0 else (slice(None), hidden)] = False
    return parts
