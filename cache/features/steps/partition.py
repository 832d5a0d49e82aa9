"""Owns the schedule by dynamic programming (CacheQuant, Liu et al. 2025, arXiv 2503.01323): steps are cut
into groups, whose first step computes, so that the distances of all others from the first of their group are smallest
in sum. The exact optimum, as in Fisher's one-dimensional clustering. Independent of what is cached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .contract import Action, Schedule, of_computed


def distances(features: Sequence[torch.Tensor]) -> list[list[float]]:
    """Return [T][T], the L1 distance between the calibrated features of any two steps. features: one tensor a step."""
    stacked = torch.stack([feature.double().flatten() for feature in features])
    return [[float(value) for value in row] for row in torch.cdist(stacked, stacked, p=1)]


def partition(
    distance: Sequence[Sequence[float]],
    groups: int,
    *,
    shortest: int = 1,
    longest: int | None = None,
) -> tuple[int, ...]:
    """Return the first step of each group, ascending; the first one is 0.

    distance: [T][T], from row to column. groups: 1 to T. shortest, longest: bounds of a group's length. The cost of a
    group [j, n) is the sum over its steps of their distance from step j; L(n, k) = min over j of L(j, k - 1) + cost.
    Raises ValueError if no partition keeps the bounds.
    """
    total = len(distance)
    most = total if longest is None else longest
    cost = [_sums(row, start) for start, row in enumerate(distance)]
    best = [[math.inf] * (total + 1) for _ in range(groups + 1)]
    head = [[0] * (total + 1) for _ in range(groups + 1)]
    best[0][0] = 0.0
    for k in range(1, groups + 1):
        for end in range(1, total + 1):
            for start in range(max(0, end - most), end - shortest + 1):
                candidate = best[k - 1][start] + cost[start][end - start]
                if candidate < best[k][end]:
                    best[k][end], head[k][end] = candidate, start
    if not math.isfinite(best[groups][total]):
        raise ValueError(f"{total} steps cannot be cut into {groups} groups of {shortest} to {most}")
    heads, end = [], total
    for k in range(groups, 0, -1):
        end = head[k][end]
        heads.append(end)
    return tuple(reversed(heads))


def dynamic_schedule(distance: Sequence[Sequence[float]], interval: float, *, instead: Action) -> Schedule:
    """Return the best schedule that computes every `interval` steps on average, with groups of half to twice that."""
    total = len(distance)
    groups = math.ceil(total / interval)
    heads = partition(distance, groups, shortest=max(1, math.ceil(interval / 2)), longest=math.floor(2 * interval))
    return of_computed(total, heads, instead)


def _sums(row: Sequence[float], start: int) -> list[float]:
    """Return, by length, the cost of the group that begins at `start`."""
    sums = [0.0]
    for value in row[start:]:
        sums.append(sums[-1] + value)
    return sums
