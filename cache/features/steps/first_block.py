"""Owns the gate by the first block (First-Block-Cache of ParaAttention; diffusers' FirstBlockCacheConfig): the rest of
the network is computed again once the residual of its first block has moved too far from where it was when the rest was
computed last. Independent of blocks: the caller measures the distance.

There the block is run and compared in the same step, for which the host waits. Here the distance of one step decides
the next, so the first step after a jump still uses the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .contract import Action


@dataclass(kw_only=True)
class FirstBlockGate:
    """A `Gate`. threshold: of the relative L1 distance from the anchor, the signal of the last computed step (0.05 in
    the original). most: at most so many steps in a row are not computed; 0: any number. See `AccumulatedGate`."""

    steps: int
    threshold: float = 0.05
    first: int = 1
    last: int = 1
    most: int = 0
    instead: Action = Action.SHALLOW
    _distance: float = field(default=0.0, init=False)
    _reused: int = field(default=0, init=False)

    def action(self, step: int) -> Action:
        """See `Gate`."""
        forced = step < self.first or step >= self.steps - self.last or (self.most and self._reused >= self.most)
        if forced or self._distance > self.threshold:
            self._distance, self._reused = 0.0, 0
            return Action.COMPUTE
        self._reused += 1
        return self.instead

    def observe(self, distance: float) -> None:
        """See `Gate`. distance: from the signal of the last computed step; NaN or infinite where there is none."""
        self._distance = distance if math.isfinite(distance) else 0.0
