"""Owns the empirical measure of a receptive field: change one input and see which outputs differ in any bit.

A lower bound that takes nothing for granted about the network: influence that rounds away, or that a ReLU stops, is
not seen, so the largest reach over several inputs and positions counts. cache/features/reach.py has the upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .receptive import ReceptiveField, field_of

Call = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """How inputs are drawn: normal with standard deviation `scale`; the changed one is replaced by `jump` times
    another such draw. inputs: how many are drawn. dtype: float64 sees further than float32, where the influence of a
    far input rounds away.
    """

    inputs: int = 4
    scale: float = 1.0
    jump: float = 8.0
    dtype: torch.dtype = torch.float64
    seed: int = 0


@torch.no_grad()
def changed_outputs(call: Call, shape: Sequence[int], at: Sequence[int], how: Perturbation) -> list[tuple[int, int]]:
    """Return the first and last output that changed with the input at index `at`, along each axis of `at`.

    shape: [N, C, ...] of the input; `at` indexes the axes after C, all channels change. An axis along which nothing
    changed has (n, -1).
    """
    generator = torch.Generator().manual_seed(how.seed)
    ranges: list[tuple[int, int]] = []
    for _ in range(how.inputs):
        plain = torch.randn(*shape, generator=generator, dtype=how.dtype) * how.scale
        other = plain.clone()
        place: tuple[slice | int, ...] = (slice(None), slice(None), *at)
        other[place] = torch.randn(*shape[:2], generator=generator, dtype=how.dtype) * how.scale * how.jump
        differs = (call(plain) != call(other)).flatten(0, 1).any(dim=0).numpy()
        axes = range(differs.ndim)
        found = [_extent(np.asarray(differs.any(axis=tuple(set(axes) - {axis})))) for axis in axes]
        ranges = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(ranges or found, found, strict=True)]
    return ranges


def _extent(differs: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, int]:
    places = np.flatnonzero(differs)
    return (int(places[0]), int(places[-1])) if len(places) else (len(differs), -1)


def empirical_field(
    call: Call, channels: int, *, size: int, cell: int, how: Perturbation | None = None
) -> ReceptiveField:
    """Return the field that perturbations show, of a call that maps [1, channels, size, size] to [1, C', s', s'].

    cell: input elements after which the network repeats, with its strides and upsamplings; a whole cell of positions
    in the middle is changed, one at a time, which sees every phase. `size` should be more than twice the field, as its
    ends cut it.
    """
    how = how or Perturbation()
    start = size // cell // 2 * cell
    reached = [changed_outputs(call, (1, channels, size, size), (at, at), how) for at in range(start, start + cell)]
    outputs = int(call(torch.zeros(1, channels, size, size, dtype=how.dtype)).shape[-1])
    per_cell = outputs // (size // cell)
    first, last = np.full(outputs, size), np.full(outputs, -1)
    for at, ranges in enumerate(reached, start=start):
        low, high = (pick(axis) for pick, axis in ((min, [r[0] for r in ranges]), (max, [r[1] for r in ranges])))
        first[low : high + 1] = np.minimum(first[low : high + 1], at)
        last[low : high + 1] = np.maximum(last[low : high + 1], at)
    return _shifted(first, last, size, cell, per_cell)


def _shifted(
    first: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    last: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    size: int,
    cell: int,
    per_cell: int,
) -> ReceptiveField:
    """Shift by whole cells: an output of another cell that sees the changed one tells what its like sees."""
    seen = np.flatnonzero(last >= 0)
    cells = seen // per_cell
    low, high = np.full(per_cell, size), np.full(per_cell, -size)
    np.minimum.at(low, seen % per_cell, first[seen] - cells * cell)
    np.maximum.at(high, seen % per_cell, last[seen] - cells * cell)
    return field_of(low.astype(np.int64), high.astype(np.int64), cell)
