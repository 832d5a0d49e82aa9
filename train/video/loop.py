"""Owns the loop of the stages that train one network with one loss: captured step, rate, average, log.

Independent of network shapes and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.budget import TimeBudget
from train.crew import CrewClock
from train.graphs import Replay
from train.session import Average, Master, Steps, TrainingSession, set_rate

Factor = Callable[[int, float], float]
"""(steps so far, share of the budget spent) -> factor on the peak rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a stage trains. optimiser: creates one for the float32 parameters, at rate 0; decay: of the average."""

    stage: str
    optimiser: Callable[[list[nn.Parameter]], Steps]
    peak: float
    factor: Factor
    decay: float


def train_for(
    session: TrainingSession, course: Course, modules: Sequence[nn.Module], loss: Callable[[], Tensor], seconds: float
) -> None:
    """Train all parameters of modules on `loss` (which draws its own batch; captured on a GPU); afterwards they hold
    their averages, in float32.
    """
    master = Master(*modules, dtype=session.dtype, crew=session.crew)
    session.seed_draws()
    optimiser, average = course.optimiser(master.full), Average(master.full, decay=course.decay)
    total = torch.zeros((), device=session.device)

    def step() -> None:
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        master.step(optimiser)
        total.add_(value.detach())

    replay = Replay(step, session.device)
    total.zero_()
    budget, running = CrewClock(session.crew, session.device, TimeBudget(seconds)), True
    every = 4 * session.scale.log_every
    while running:
        set_rate(optimiser, session.rate * course.peak * course.factor(budget.steps, budget.fraction()))
        replay()
        average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            mean = float(total) / ((budget.steps - 1) % every + 1)
            session.log(course.stage, step=float(budget.steps), loss=mean, rate=budget.rate)
            total.zero_()
    average.swap()
    master.release()
