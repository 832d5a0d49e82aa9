"""Owns the gate by accumulated distance (TeaCache, Liu et al. 2024, arXiv 2411.19108) with its published
polynomials, and their calibration. Independent of which signal is compared.

At every step the relative L1 distance d of the signal from that of the step before is mapped by a polynomial to the
expected distance of the network's outputs, and added up; below the threshold the cached result is used. Here the
distance of a step is known only at the next one. The sum goes as far as it has been measured; for the step to be
decided the newest distance stands in, and is replaced by its own once that is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from .contract import Action

IDENTITY = (1.0, 0.0)

POLYNOMIALS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "flux-dev": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
        "ltx-video": (21.4700694, -12.8016453, 2.31279151, 0.792487521, 9.69e-3),
        "hunyuan-video": (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
        "mochi": (-3512.41319, 811.675948, -60.9400215, 2.42429681, 3.05e-3),
        "lumina2": (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344),
        "cogvideox-2b": (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -3.62e-3),
        "wan2.1-1.3b": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        "wan2.1-14b": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        "wan2.1-1.3b, embedding": (-5.21862437e4, 9.23041404e3, -528.275948, 13.6987616, -0.0499875664),
        "wan2.1-14b, embedding": (-3.03318725e5, 4.90537029e4, -2655.30556, 58.7365115, -0.315583525),
    }
)
"""Published by the authors for the timestep-modulated input of the first block ("embedding": for the time embedding);
highest power first. They hold for those models and that signal only."""


def fit_polynomial(inputs: Sequence[float], outputs: Sequence[float], degree: int = 4) -> tuple[float, ...]:
    """Return the least-squares polynomial from distances of the signal to distances of the network's outputs, measured
    between the same neighbouring steps of uncached runs; highest power first."""
    assert len(inputs) == len(outputs) > degree, (len(inputs), len(outputs), degree)
    return tuple(float(c) for c in np.polyfit(np.asarray(inputs), np.asarray(outputs), degree))


def evaluate(polynomial: Sequence[float], x: float) -> float:
    """Return the polynomial's value at x; highest power first (Horner)."""
    total = 0.0
    for coefficient in polynomial:
        total = total * x + coefficient
    return total


@dataclass(kw_only=True)
class AccumulatedGate:
    """A `Gate`. steps: of the trajectory. threshold: of the accumulated distance. polynomial: highest power first.
    first, last: how many steps at either end are always computed; first >= 1. instead: what is done between."""

    steps: int
    threshold: float
    polynomial: Sequence[float] = IDENTITY
    first: int = 2
    last: int = 1
    instead: Action = Action.REUSE
    _sum: float = field(default=0.0, init=False)
    _newest: float = field(default=0.0, init=False)
    _computed: bool = field(default=True, init=False)

    def action(self, step: int) -> Action:
        """See `Gate`."""
        forced = step < self.first or step >= self.steps - self.last
        self._computed = forced or self._sum + self._newest >= self.threshold
        if self._computed:
            self._sum = 0.0
        return Action.COMPUTE if self._computed else self.instead

    def observe(self, distance: float) -> None:
        """See `Gate`. distance: from the signal of the step before; infinite or NaN where there is none."""
        if not np.isfinite(distance):
            return
        self._newest = max(0.0, evaluate(self.polynomial, distance))
        if not self._computed:  # up to the last computed step nothing is missing
            self._sum += self._newest
