"""Owns reuse with its error rectified and its steps adjusted: the idea of ERTACache (2025, arXiv 2508.21091), of
which only the abstract was at hand; the formulas are this project's. Independent of networks.

Three parts, all fixed in advance from uncached runs: a schedule that computes when the relative error of the cached
output would pass a bound; a factor for each reused step, by which the step along the cached output is lengthened or
shortened so that it comes closest to the true one (least squares); and an offset per channel, the mean error that is
left. On a solver that moves along its output (velocity or noise) the factor acts as a step of another length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .contract import Action, Schedule, of_computed, relative_l1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rectification:
    """factors: one per step, 1 where computed. offsets: [T, C], 0 where computed."""

    schedule: Schedule
    factors: tuple[float, ...]
    offsets: torch.Tensor


def error_schedule(outputs: Sequence[torch.Tensor], bound: float, *, most: int = 4) -> Schedule:
    """Return a schedule that computes before the relative L1 error of the cached output passes `bound`.

    outputs: [N, C, ...] per step, of uncached runs. most: reused steps in a row.
    """
    computed = [0]
    for step in range(1, len(outputs)):
        held = outputs[computed[-1]]
        error = float(relative_l1(held.double(), outputs[step].double()).mean())
        if error > bound or step - computed[-1] > most:
            computed.append(step)
    return of_computed(len(outputs), computed, Action.REUSE)


def rectify(outputs: Sequence[torch.Tensor], schedule: Schedule) -> Rectification:
    """Fit factor and offsets of each reused step. outputs: [N, C, ...] per step, of uncached runs."""
    factors, offsets, held = [], [], outputs[0]
    for output, action in zip(outputs, schedule, strict=True):
        true = output.double()
        if action is Action.COMPUTE:
            held = output
            factors.append(1.0)
            offsets.append(torch.zeros(true.shape[1], dtype=torch.float64))
            continue
        cached = held.double()
        factor = float((true * cached).sum() / cached.square().sum())
        factors.append(factor)
        offsets.append((true - factor * cached).transpose(0, 1).flatten(1).mean(1))
    return Rectification(schedule=schedule, factors=tuple(factors), offsets=torch.stack(offsets))
