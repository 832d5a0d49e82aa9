"""Owns the step functions (LCM, TCD, turbo): the coefficients that take a latent from one noise level to the next.

Pure host arithmetic in float64. Independent of tensors, guidance and streams; pipelines/image/denoise.py applies the
coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from .model import ScheduleConfig
from .schedule import levels


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCoefficients:
    """The coefficients of one step of one slot. With latents X, guided noise prediction eps and fresh noise n:

    x_hat = c_out (X - b eps) / a + c_skip X        the denoised latents
    X'    = a_next x_hat + w_noise n + w_eps eps    the latents of the next step
    The last step gives x_hat itself: a_next = 1, w_noise = w_eps = 0.
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


class StepFunction(Protocol):
    """How a step gets from one noise level to the next."""

    def coefficients(self, config: ScheduleConfig, timestep: int, next_timestep: int | None) -> StepCoefficients:
        """Return the coefficients of the step at `timestep`. next_timestep: None for the last step."""
        ...


@dataclass(frozen=True, slots=True)
class LcmStep:
    """Latent consistency (Luo et al. 2023, equation 9 and algorithm 3): boundary scalings, then fresh noise."""

    def coefficients(self, config: ScheduleConfig, timestep: int, next_timestep: int | None) -> StepCoefficients:
        scaled, sigma = config.timestep_scaling * timestep, config.sigma_data
        variance = scaled * scaled + sigma * sigma
        return _renoised(config, timestep, next_timestep, sigma * sigma / variance, scaled / math.sqrt(variance))


@dataclass(frozen=True, slots=True)
class TurboStep:
    """Adversarially distilled models (Sauer et al. 2023): the plain x0, re-noised for the next step."""

    def coefficients(self, config: ScheduleConfig, timestep: int, next_timestep: int | None) -> StepCoefficients:
        return _renoised(config, timestep, next_timestep, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class TcdStep:
    """Trajectory consistency (Zheng et al. 2024, algorithm 4, strategic stochastic sampling).

    gamma in [0, 1]: 0 is deterministic (no fresh noise, hence no flicker), 1 noises as LCM does. With
    s = floor((1 - gamma) t'), the latents move to level s along eps and are then noised from s up to t'.
    """

    gamma: float = 0.0

    def coefficients(self, config: ScheduleConfig, timestep: int, next_timestep: int | None) -> StepCoefficients:
        plain = _renoised(config, timestep, next_timestep, 0.0, 1.0)
        if next_timestep is None:
            return plain
        a_s, b_s = levels(config, math.floor((1.0 - self.gamma) * next_timestep))
        ratio = plain.a_next / a_s
        return StepCoefficients(
            timestep=timestep,
            a=plain.a,
            b=plain.b,
            c_skip=0.0,
            c_out=1.0,
            a_next=plain.a_next,
            w_noise=math.sqrt(max(0.0, 1.0 - ratio * ratio)),
            w_eps=ratio * b_s,
            inverse_b_next=plain.inverse_b_next,
        )


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
    return tuple(function.coefficients(config, t, t_next) for t, t_next in zip(steps, following, strict=True))


STEP_FUNCTIONS: Mapping[str, StepFunction] = MappingProxyType(
    {"lcm": LcmStep(), "tcd": TcdStep(gamma=0.0), "turbo": TurboStep()}
)
"""By value of the control `step_function`."""
