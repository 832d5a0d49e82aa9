"""Owns the check of plans on this machine: do they compute what the networks compute, and how much faster?

Independent of how it is shown.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pipelines.core.errors import ModelError
from trt.onnx_check import decibels, relative_error
from trt.weights import weights_of

from .commands import PlanRequest, Plans, is_for_another_machine, plan_errors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipelines.core.contracts import Notify
    from pipelines.core.parts import Part, PartCall, Tensors

HALF_DB, FLOAT32_DB = 40.0, 80.0
"""A plan in 16 bits, or in float32, must be as close to the network: relative errors of 1e-2 and 1e-4."""
_WARM_UP, _RUNS, _CHANGED = 5, 30, 8


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
    if is_for_another_machine(request):
        raise ModelError(f"A plan of {request.backend} runs on an NVIDIA card only.", "Use --device cuda.")
    with plan_errors():
        for wanted in plans.wanted(request):
            recipe, part, inputs = wanted.recipe, wanted.part, wanted.key.inputs
            call, given = recipe.load(part, plans.stored(wanted, progress)), wanted.samples(part, 1)[0]
            yield _checked(part, inputs, given, call)
            if not recipe.bakes_weights and isinstance(call, TakesWeights):
                with _other_weights(part.module):
                    call.update(weights_of(part.module))
                    yield _checked(part, f"{inputs}, with other weights", given, call)


@runtime_checkable
class TakesWeights(Protocol):
    """A loaded plan whose weights can be changed."""

    def update(self, weights: Mapping[str, torch.Tensor]) -> int:
        """Compute with these weights, by the module's names, from the next call on. Raises PlanError."""
        ...

    def __call__(self, *inputs: torch.Tensor) -> Tensors: ...


@contextmanager
def _other_weights(module: nn.Module) -> Iterator[None]:
    """Scale some matrices and kernels by 1.1 for a while: all over the module, of which the part may read a half."""
    import torch

    matrices = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    matrices = matrices[:: max(1, len(matrices) // _CHANGED)]
    saved = [parameter.clone() for parameter in matrices]
    with torch.no_grad():
        for parameter in matrices:
            parameter.mul_(1.1)
        try:
            yield
        finally:
            for parameter, values in zip(matrices, saved, strict=True):
                parameter.copy_(values)


def _checked(part: Part, inputs: str, given: Tensors, call: PartCall) -> PlanCheck:
    import torch

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
