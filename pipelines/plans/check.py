"""Owns the check of plans on this machine: do they compute what the networks compute, and how much faster?

Independent of how it is shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt.onnx_check import decibels, relative_error

from .commands import PlanRequest, Plans, plan_errors

if TYPE_CHECKING:
    import torch

    from pipelines.core.contracts import Notify
    from pipelines.core.parts import Part, PartCall

HALF_DB, FLOAT32_DB = 40.0, 80.0
"""A plan in 16 bits, or in float32, must be as close to the network: relative errors of 1e-2 and 1e-4."""
_WARM_UP, _RUNS = 5, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCheck:
    """One part's plan beside PyTorch running the network eagerly, on the same inputs and device.

    signal_db: ratio of signal to error of the worst output. milliseconds: medians of 30 runs after 5.
    """

    part: str
    inputs: str
    signal_db: float
    limit_db: float
    plan_ms: float
    eager_ms: float

    @property
    def passed(self) -> bool:
        """Whether the plan is close enough."""
        return self.signal_db >= self.limit_db


def check_plans(plans: Plans, request: PlanRequest, progress: Notify) -> Iterator[PlanCheck]:
    """Build what is not stored, then run each plan beside its network, and yield the result.

    Raises ModelError if a plan cannot run here, with the remedy.
    """

    with plan_errors():
        for recipe, part, key in plans.wanted(request):
            call = recipe.load(part, plans.stored(recipe, part, key, progress))
            yield _checked(part, key.inputs, call)


def _checked(part: Part, inputs: str, call: PartCall) -> PlanCheck:
    import torch

    given = tuple(part.inputs.values())
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in part.module.parameters())
    with torch.no_grad():
        wanted = [output.clone() for output in part.module(*given)]
        error = max(relative_error(got, want) for got, want in zip(call(*given), wanted, strict=True))
        return PlanCheck(
            part=part.name,
            inputs=inputs,
            signal_db=decibels(error),
            limit_db=HALF_DB if half else FLOAT32_DB,
            plan_ms=_median_ms(lambda: call(*given), given[0].device),
            eager_ms=_median_ms(lambda: part.module(*given), given[0].device),
        )


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    import torch

    times = []
    for _ in range(_WARM_UP + _RUNS):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[_WARM_UP:])
