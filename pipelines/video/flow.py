"""Owns the noise schedule of flow-matching video models: noise levels, the steps of each family, and their formulas.

Host numbers are float64; tensor formulas are evaluated in float64 and returned in the format of the latents. Knows no
network, no cache and no chunk.
Flow matching: Lipman et al. 2023; the shift of the levels: Esser et al. 2024, section 5.3.2; steps that add fresh
noise: Yin et al. 2024 (CausVid), Huang et al. 2025 (Self-Forcing, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pipelines.core.errors import ControlError

CLEAN_TIMESTEP = 0.0
"""The timestep of the pass that writes a finished chunk's keys and values."""


@dataclass(frozen=True, slots=True)
class FlowStep:
    """One denoising step. timestep: what the network is given, [0, 1000]; sigma: its noise level, [0, 1]."""

    timestep: float
    sigma: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSchedule:
    """sigma_i = s r_i / (1 + (s - 1) r_i) with r_i = 1 - i / T and shift s; t_i = T sigma_i, i = 0 .. T - 1."""

    shift: float
    train_steps: int = 1000
    sigmas: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ControlError(f"The schedule's shift is {self.shift:g}.", "Give a number above 0; Wan uses 3 to 12.")
        if self.train_steps < 1:
            raise ControlError(f"The schedule has {self.train_steps} steps.", "Give at least 1; Wan has 1000.")
        raw = np.linspace(1.0, 0.0, self.train_steps + 1)[:-1]
        object.__setattr__(self, "sigmas", shifted(raw, self.shift))

    @property
    def timesteps(self) -> npt.NDArray[np.float64]:
        """t_i = T sigma_i, noisiest first: [T]."""
        return self.sigmas * self.train_steps

    def warped(self, step: int) -> float:
        """The table's timestep at a raw step in [0, T]: t_(T - step); 0 for step 0."""
        if not 0 <= step <= self.train_steps:
            raise ControlError(f"The step {step} is outside of the schedule.", f"Use 0 to {self.train_steps}.")
        return 0.0 if step == 0 else float(self.timesteps[self.train_steps - step])

    def sigma(self, timestep: float) -> float:
        """The level of the table's entry nearest to a timestep, the noisier of two equally near.

        So t = 0 has the table's smallest level (0.00498 for shift 5), not 0, as in the published code.
        """
        return float(self.sigmas[np.abs(self.timesteps - timestep).argmin()])

    def step(self, timestep: float) -> FlowStep:
        """The step of a timestep that the network is given as it is."""
        return FlowStep(timestep, self.sigma(timestep))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepList:
    """The steps that a distilled family was trained with; `families` has those of the published ones.

    raw: steps in [0, 1000], noisiest first. warp: whether each is replaced by the table's entry at that place.
    """

    raw: tuple[int, ...]
    shift: float
    warp: bool

    def __post_init__(self) -> None:
        if not self.raw or any(late >= early for early, late in zip(self.raw, self.raw[1:], strict=False)):
            raise ControlError(f"The denoising steps are {list(self.raw)}.", "Give at least one, each below the last.")

    @property
    def schedule(self) -> FlowSchedule:
        """The table that these steps belong to."""
        return FlowSchedule(shift=self.shift)

    def steps(self) -> tuple[FlowStep, ...]:
        """Noisiest first."""
        schedule = self.schedule
        return tuple(schedule.step(schedule.warped(raw) if self.warp else float(raw)) for raw in self.raw)


def spaced_steps(schedule: FlowSchedule, count: int, strength: float = 1.0) -> tuple[FlowStep, ...]:
    """`count` warped steps, evenly from int(1000 strength) to 0, the last included (Krea realtime-video).

    Raises ControlError for fewer than 2 steps, for a strength outside of (0, 1], and when steps would coincide.
    """
    if count < 2:
        raise ControlError(f"{count} denoising steps were asked for.", "Give at least 2: the last one is at 0.")
    if not 0 < strength <= 1:
        raise ControlError(f"The strength is {strength:g}.", "Give a number above 0 and at most 1.")
    raw = [int(step) for step in torch.linspace(strength * schedule.train_steps, 0, count, dtype=torch.float32)]
    if len(set(raw)) != count:
        raise ControlError(
            f"Strength {strength:g} leaves no room for {count} steps.", "Raise the strength or lower the steps."
        )
    return tuple(schedule.step(schedule.warped(step)) for step in raw)


def camera_steps(steps: Sequence[FlowStep], schedule: FlowSchedule, noise_scale: float) -> tuple[FlowStep, ...]:
    """The first step at int(1000 s) - 100 for latents mixed with noise scale s; of the others those below it.

    StreamDiffusionV2's video-to-video entry: the network is told less noise than was mixed in. noise_scale: (0.1, 1].
    """
    entry = int(schedule.train_steps * noise_scale) - schedule.train_steps // 10
    if not 0 < noise_scale <= 1 or entry <= 0:
        raise ControlError(f"The noise scale is {noise_scale:g}.", "Give a number above 0.1 and at most 1.")
    return (schedule.step(float(entry)), *(step for step in steps[1:] if step.timestep < entry))


def shifted(raw: npt.NDArray[np.float64], shift: float) -> npt.NDArray[np.float64]:
    """s r / (1 + (s - 1) r)."""
    return shift * raw / (1.0 + (shift - 1.0) * raw)


def frame_levels(sigmas: torch.Tensor) -> torch.Tensor:
    """[B, F] -> [B, 1, F, 1, 1] float64, to multiply latents [B, C, F, H, W]."""
    return sigmas.to(torch.float64)[:, None, :, None, None]


def noised(x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """x_t = (1 - sigma) x0 + sigma noise. Latents [B, C, F, H, W]; sigmas [B, F]: each frame its own level."""
    level = frame_levels(sigmas)
    return ((1.0 - level) * x0.to(torch.float64) + level * noise.to(torch.float64)).to(x0.dtype)


def denoised(latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """x0 = x_t - sigma v, where the network predicts v = noise - x0. Latents [B, C, F, H, W]; sigmas [B, F]."""
    return (latents.to(torch.float64) - frame_levels(sigmas) * velocity.to(torch.float64)).to(latents.dtype)


def euler_step(
    latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor, next_sigmas: torch.Tensor
) -> torch.Tensor:
    """x' = x + (sigma' - sigma) v: the probability-flow ODE's Euler step, for models that were not distilled."""
    change = frame_levels(next_sigmas) - frame_levels(sigmas)
    return (latents.to(torch.float64) + change * velocity.to(torch.float64)).to(latents.dtype)


def guided(velocity: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """v_n + g (v - v_n), v_n for the negative prompt: classifier-free guidance (Ho and Salimans 2022); off at g = 1."""
    return negative + scale * (velocity - negative)
