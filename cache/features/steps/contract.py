"""Owns the contract of reuse: what is done at a step, who decides it, and what cached tensors are turned into.

A decision is a host value before its step begins: from a *schedule*, fixed in advance, or from a *gate*, which is told
what was measured in earlier steps and never waits for the current one. An *extrapolation* is a weighted sum of earlier
results whose weights the host knows, so the device only multiplies and adds. Independent of networks, samplers and
frames; a step may as well be a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol, TypeAlias

import torch


class Action(IntEnum):
    """What is done at one step. COMPUTE: the whole network; what is cached is replaced. SHALLOW: the part of the
    network above a branch, with the cached feature below it. REUSE: nothing of the network; the cached output is
    brought up to date."""

    COMPUTE = 0
    SHALLOW = 1
    REUSE = 2


Schedule: TypeAlias = tuple[Action, ...]
"""One action per step. The first is COMPUTE: nothing is cached before it."""


class Gate(Protocol):
    """Decides step by step for one trajectory, from distances that were measured in earlier steps. One object per
    trajectory."""

    def action(self, step: int) -> Action:
        """Return the action of a step. Called once for each step, in order."""
        ...

    def observe(self, distance: float) -> None:
        """Take the distance measured in the step of the last `action`: of its signal from that of an earlier step."""
        ...


class Scheduled:
    """A schedule as a `Gate`. Measures nothing."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = check_schedule(schedule)

    def action(self, step: int) -> Action:
        """See `Gate`."""
        return self._schedule[step]

    def observe(self, distance: float) -> None:
        """See `Gate`."""


class Extrapolation(Protocol):
    """Predicts a result from the last computed ones. depth: how many of them it uses at most, >= 1."""

    @property
    def depth(self) -> int: ...

    def weights(self, computed: Sequence[float], at: float) -> tuple[float, ...]:
        """Return the weight of each computed result, newest first; they add up to 1.

        computed: positions (steps or times) of the results at hand, newest first, distinct, at least one. At most
        `depth` of them have a weight other than 0. at: the position to predict.
        """
        ...


class Hold:
    """The newest result as it is."""

    depth = 1

    def weights(self, computed: Sequence[float], at: float) -> tuple[float, ...]:
        """See `Extrapolation`."""
        return (1.0, *[0.0] * (len(computed) - 1))


def weighted(history: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """history: [N, K, ...], newest first. weights: [N, K]. Returns [N, ...], the sum of weight times result."""
    shape = (*weights.shape, *[1] * (history.dim() - 2))
    return (history * weights.to(history.dtype).view(shape)).sum(1)


def relative_l1(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """mean|now - before| / mean|before| of each row: [N, ...] twice -> [N]. Rows of zeros before give infinity or
    NaN."""
    return (now - before).abs().flatten(1).mean(1) / before.abs().flatten(1).mean(1)


def check_schedule(schedule: Schedule) -> Schedule:
    """Return a schedule that begins with COMPUTE. Raises ValueError for another one."""
    if not schedule or schedule[0] is not Action.COMPUTE:
        raise ValueError(f"a schedule begins with COMPUTE, not {schedule[:1]}")
    return schedule


def of_computed(steps: int, computed: Sequence[int], instead: Action) -> Schedule:
    """Return the schedule of `steps` steps that computes at these ones and does `instead` at the others."""
    chosen = frozenset(computed)
    return check_schedule(tuple(Action.COMPUTE if step in chosen else instead for step in range(steps)))
