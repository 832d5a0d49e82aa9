"""Owns MagCache (Ma et al. 2025): a schedule from the ratios of the residuals' magnitudes at
neighbouring steps, and their calibration. As diffusers' MagCacheConfig does it. Independent of networks.

gamma_t = mean over tokens of |R_t| / |R_{t-1}|, R = output - input of the stack. While a residual is reused, the
product of the ratios since it was computed says how far its magnitude is off; the sum of those errors is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from .contract import Action, Schedule, of_computed


def magnitude_ratios(residuals: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """Return gamma of each step, the first one 1. residuals: one [N, T, C] per step: tokens of C channels."""
    ratios = [1.0]
    for before, now in pairwise(residuals):
        norms = torch.linalg.vector_norm(now.double(), dim=-1), torch.linalg.vector_norm(before.double(), dim=-1)
        ratios.append(float((norms[0] / (norms[1] + 1e-8)).mean()))
    return tuple(ratios)


def nearest(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """Return the ratios for another number of steps: of the nearest calibrated step, halves to even."""
    if steps == 1:
        return (ratios[-1],)
    scale = (len(ratios) - 1) / (steps - 1)
    return tuple(ratios[round(index * scale)] for index in range(steps))


def magnitude_schedule(
    ratios: Sequence[float],
    *,
    threshold: float = 0.06,
    most: int = 3,
    retention: float = 0.2,
    instead: Action = Action.REUSE,
) -> Schedule:
    """Return the schedule of as many steps as there are ratios.

    threshold: of the sum of |1 - product of ratios| since the last computed step. most: steps in a row without
    computing. retention: share of the steps, from the first on, that are always computed.
    """
    kept = int(retention * len(ratios) + 0.5)
    computed, product, error, reused = [], 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        if step >= kept:
            product, reused = product * ratio, reused + 1
            error += abs(1.0 - product)
            if step > 0 and error <= threshold and reused <= most:
                continue
            product, error, reused = 1.0, 0.0, 0
        computed.append(step)
    return of_computed(len(ratios), computed, instead)
