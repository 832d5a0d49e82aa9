"""Owns the step functions: few-step ones (LCM, TCD, turbo) and many-step ones (DDIM, DPM-Solver++). Each chooses a
slot's timesteps and gives the coefficients that take a latent from one noise level to the next.

Pure host arithmetic in float64. Independent of tensors, guidance and streams; pipelines/image/denoise.py applies the
coefficients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError

from .model import ScheduleConfig
from .schedule import even_timesteps, levels, timesteps

FEW_STEPS = 8
"""Maximum of the step functions that add fresh noise in every step: the ring holds so much noise for each slot."""
MANY_STEPS = 50
"""Maximum of the others, and of the control `steps`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCoefficients:
    """The coefficients of one step of one slot. With latents X, guided noise prediction eps, fresh noise n and x_last,
    the denoised latents of the step before:

    x_hat = c_out (X - b eps) / a + c_skip X        the denoised latents
    X'    = a_next x_hat + w_noise n + w_eps eps + w_last (x_hat - x_last)
    The last step gives x_hat itself: a_next = 1, w_noise = w_eps = w_last = 0.
    inverse_b_next: 1 / b of the next level; 0 at the last step.
    """

    timestep: int
    a: float
    b: float
    c_skip: float
    c_out: float
    a_next: float
    w_noise: float
    w_eps: float
    inverse_b_next: float
    w_last: float = 0.0


class StepFunction(ABC):
    """How a step gets from one noise level to the next. most_steps: of a slot. fresh_noise: whether each step adds
    noise of its own; without it a slot needs its entry noise only. many_steps: whether the timesteps are spread evenly
    over the schedule instead of being taken from LCM's."""

    most_steps: ClassVar[int] = FEW_STEPS
    fresh_noise: ClassVar[bool] = True
    many_steps: ClassVar[bool] = False

    @abstractmethod
    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        """Return the coefficients of the step at `timestep`. next_timestep: None for the last step. last_timestep: of
        the step before; None for the first one."""

    def noises(self, steps: int) -> int:
        """Return how many fields of noise a slot of so many steps uses, its entry noise included."""
        return steps if self.fresh_noise else 1


class LcmStep(StepFunction):
    """Latent consistency (Luo et al. 2023, equation 9 and algorithm 3): boundary scalings, then fresh noise."""

    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        scaled, sigma = config.timestep_scaling * timestep, config.sigma_data
        variance = scaled * scaled + sigma * sigma
        return _renoised(config, timestep, next_timestep, sigma * sigma / variance, scaled / math.sqrt(variance))


class TurboStep(StepFunction):
    """Adversarially distilled models (Sauer et al. 2023): the plain x0, re-noised for the next step."""

    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        return _renoised(config, timestep, next_timestep, 0.0, 1.0)


@dataclass(frozen=True)
class TcdStep(StepFunction):
    """Trajectory consistency (Zheng et al. 2024, algorithm 4, strategic stochastic sampling).

    gamma in [0, 1]: 0 is deterministic (no fresh noise, hence no flicker), 1 noises as LCM does. With
    s = floor((1 - gamma) t'), the latents move to level s along eps and are then noised from s up to t'.
    """

    gamma: float = 0.0

    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        plain = _renoised(config, timestep, next_timestep, 0.0, 1.0)
        if next_timestep is None:
            return plain
        a_s, b_s = levels(config, math.floor((1.0 - self.gamma) * next_timestep))
        ratio = plain.a_next / a_s
        return replace(plain, w_noise=math.sqrt(max(0.0, 1.0 - ratio * ratio)), w_eps=ratio * b_s)


class DdimStep(StepFunction):
    """Denoising diffusion implicit models (Song et al. 2021, equation 12 with sigma = 0): back to x0, then along
    eps."""

    most_steps = MANY_STEPS
    fresh_noise = False
    many_steps = True

    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        plain = _renoised(config, timestep, next_timestep, 0.0, 1.0)
        return replace(plain, w_noise=0.0, w_eps=plain.w_noise)


class DpmSolverStep(DdimStep):
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2, midpoint form), of first order in the first and the last step.

    With lambda = log(a / b), h = lambda' - lambda and r = (lambda - lambda_last) / h it is a DDIM step from
    x_hat + (x_hat - x_last) / (2 r) along the same eps, hence w_last = a' (1 - exp(-h)) / (2 r) beside DDIM's terms.
    """

    def coefficients(
        self, config: ScheduleConfig, timestep: int, next_timestep: int | None, last_timestep: int | None = None
    ) -> StepCoefficients:
        first_order = super().coefficients(config, timestep, next_timestep, last_timestep)
        if next_timestep is None or last_timestep is None:
            return first_order
        last, now, following = (_half_log_snr(config, t) for t in (last_timestep, timestep, next_timestep))
        h, r = following - now, (now - last) / (following - now)
        return replace(first_order, w_last=first_order.a_next * -math.expm1(-h) / (2 * r))


def _half_log_snr(config: ScheduleConfig, timestep: int) -> float:
    a, b = levels(config, timestep)
    return math.log(a / b)


def _renoised(
    config: ScheduleConfig, timestep: int, next_timestep: int | None, c_skip: float, c_out: float
) -> StepCoefficients:
    a, b = levels(config, timestep)
    last = next_timestep is None
    a_next, b_next = (1.0, 0.0) if next_timestep is None else levels(config, next_timestep)
    return StepCoefficients(
        timestep=timestep,
        a=a,
        b=b,
        c_skip=c_skip,
        c_out=c_out,
        a_next=a_next,
        w_noise=b_next,
        w_eps=0.0,
        inverse_b_next=0.0 if last else 1.0 / b_next,
    )


def plan(function: StepFunction, config: ScheduleConfig, steps: tuple[int, ...]) -> tuple[StepCoefficients, ...]:
    """Return the coefficients of all steps of a slot. steps: its timesteps, noisiest first."""
    following: tuple[int | None, ...] = (*steps[1:], None)
    before: tuple[int | None, ...] = (None, *steps[:-1])
    return tuple(
        function.coefficients(config, t, t_next, t_last)
        for t, t_next, t_last in zip(steps, following, before, strict=True)
    )


STEP_FUNCTIONS: Mapping[str, StepFunction] = MappingProxyType(
    {
        "lcm": LcmStep(),
        "tcd": TcdStep(gamma=0.0),
        "turbo": TurboStep(),
        "ddim": DdimStep(),
        "dpmpp": DpmSolverStep(),
    }
)
"""By value of the control `step_function`."""


def slot_timesteps(config: ScheduleConfig, controls: Controls, strength: float) -> tuple[int, ...]:
    """Return the timesteps of a slot with these controls, noisiest first.

    Raises ControlError, with the remedy, for more steps than its step function or the strength allows.
    """
    name, steps = controls.step_function, controls.steps
    function = STEP_FUNCTIONS[name]
    if steps > function.most_steps:
        others = [other for other, known in STEP_FUNCTIONS.items() if known.most_steps >= steps]
        raise ControlError(
            f"{steps} steps are more than the step function {name} takes: at most {function.most_steps}.",
            f"Lower steps to {function.most_steps}, or choose {' or '.join(others)} as step_function.",
        )
    return (even_timesteps if function.many_steps else timesteps)(config, steps, strength)
