"""Owns the choice of blocks by profiling (after ProfilingDiT, Ma et al. 2025, arXiv 2504.03140): which contiguous range
of a network's blocks changes least from step to step for what it costs. The range is stored as one difference, output
minus input. The paper tells foreground from background blocks by their attention; here blocks are told apart by how
much their residuals change. Independent of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from .contract import relative_l1


def block_change(residuals: Sequence[Sequence[torch.Tensor]]) -> tuple[float, ...]:
    """Return, for each block, the mean relative L1 change of its residual between neighbouring steps.

    residuals: [steps][blocks], each [N, ...].
    """
    changes = []
    for block in range(len(residuals[0])):
        own = [step[block].double() for step in residuals]
        pairs = [relative_l1(now, before).mean() for before, now in pairwise(own)]
        changes.append(float(torch.stack(pairs).mean()))
    return tuple(changes)


def quietest_range(changes: Sequence[float], costs: Sequence[float], share: float) -> tuple[int, int]:
    """Return [start, stop), the contiguous range with the least change, weighted by cost, that has at least `share` of
    the cost of all blocks; of equal ones the shortest, then the first.

    changes: by block. costs: by block, in any unit, > 0. share: in (0, 1].
    """
    assert 0 < share <= 1, share
    total, found = sum(costs), []
    for start in range(len(costs)):
        for stop in range(start + 1, len(costs) + 1):
            cost = sum(costs[start:stop])
            if cost >= share * total - 1e-12:
                change = sum(c * w for c, w in zip(changes[start:stop], costs[start:stop], strict=True)) / cost
                found.append((change, stop - start, start))
    change, length, start = min(found)
    return start, start + length
