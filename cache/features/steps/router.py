"""Owns the static table that a learned router leaves (HarmoniCa, Huang et al. 2024, arXiv 2410.01723): which parts of
the network are computed at which step. train/step_router.py trains it. Independent of networks.

Parts are nested here, outermost first: part 0 is the whole network's output, part 1 the feature below the first branch,
and so on. Computing a part takes the parts above it along, so a step does all down to the deepest part that is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .contract import Action, Schedule, check_schedule

THRESHOLD = 0.1
"""Of the router's probability above which a part is computed (the paper's code)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterTable:
    """on: [T][P] whether a part is computed at a step; the first step computes all."""

    on: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        if not self.on or not all(self.on[0]):
            raise ValueError("the first step computes every part")

    @property
    def schedule(self) -> Schedule:
        """The actions of a table with one part (computed or reused) or two (output, and the feature below a branch)."""
        parts = len(self.on[0])
        assert parts in (1, 2), parts
        above = Action.SHALLOW if parts == 2 else Action.COMPUTE
        return check_schedule(
            tuple(Action.COMPUTE if row[-1] else above if row[0] else Action.REUSE for row in self.on)
        )


def route(probabilities: torch.Tensor, threshold: float = THRESHOLD) -> RouterTable:
    """Return the table of a trained router. probabilities: [T, P], sigmoids of its parameters."""
    rows = (probabilities > threshold).tolist()
    rows[0] = [True] * len(rows[0])
    return RouterTable(on=tuple(tuple(bool(v) for v in row) for row in rows))


def mixed(fresh: torch.Tensor, cached: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
    """r fresh + (1 - r) cached: what a part gives while the router is trained. probability: scalar."""
    return probability * fresh + (1 - probability) * cached


def router_loss(
    errors: Sequence[torch.Tensor],
    weights: Sequence[float],
    probabilities: torch.Tensor,
    costs: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """sum over steps of lambda_t MSE_t + beta sum of r c, c the part's cost (in the paper all parts cost the same).

    errors: the mean squared error of each step's output. weights: lambda by step. probabilities: [T, P]. costs: [P].
    """
    weighted = torch.stack([w * e for w, e in zip(weights, errors, strict=True)]).sum()
    return weighted + beta * (probabilities * costs).sum()
