"""Owns TaylorSeer's prediction (Liu et al. 2025, arXiv 2503.06923): a Taylor series whose derivatives are divided
differences of the results that were computed. Independent of tensors: the series is a weighted sum of those results.

With results Y_0 (the newest), Y_1, ... at positions s_0, s_1, ... the derivatives are D_0 = Y and
D_{m+1}(n) = (D_m(n) - D_m(n + 1)) / (s_n - s_{n+1}), and the prediction at s is sum over m of D_m (s - s_0)^m / m!.
The paper divides by a fixed interval; here, as in diffusers' TaylorSeerCacheHook, by the real gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Taylor:
    """A series up to `order` (1 to 3); of a lower order while fewer than order + 1 results are at hand."""

    order: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ValueError(f"order cannot be {self.order}: give 1, 2 or 3")

    @property
    def depth(self) -> int:
        """See `Extrapolation`."""
        return self.order + 1

    def weights(self, computed: Sequence[float], at: float) -> tuple[float, ...]:
        """See `Extrapolation`."""
        count = min(len(computed), self.depth)
        # rows[n]: the weights of the results in the current derivative at s_n
        rows = [[float(i == n) for i in range(count)] for n in range(count)]
        total, offset = list(rows[0]), at - computed[0]
        for m in range(1, count):
            gaps = [computed[n] - computed[n + 1] for n in range(count - m)]
            rows = [[(a - b) / gap for a, b in zip(rows[n], rows[n + 1], strict=True)] for n, gap in enumerate(gaps)]
            scale = offset**m / math.factorial(m)
            total = [t + scale * w for t, w in zip(total, rows[0], strict=True)]
        return (*total, *[0.0] * (len(computed) - count))
