"""Owns the noise schedule of flow-matching video models: noise levels, the steps of each family, and their formulas.

Host numbers are float64; tensor formulas are evaluated in float64 and returned in the dtype of the latents. Independent
of the network, the cache and chunks.
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
    """One denoising step. timestep: the network's input, [0, 1000]; sigma: its noise level, [0, 1]."""

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
        """Return the table's timestep at a raw step in [0, T]: t_(T - step); 0 for step 0."""
        if not 0 <= step <= self.train_steps:
            raise ControlError(f"The step {step} is outside the schedule.", f"Use 0 to {self.train_steps}.")
        return 0.0 if step == 0 else float(self.timesteps[self.train_steps - step])

    def sigma(self, timestep: float) -> float:
        """Return the sigma of the table entry nearest to a timestep; of two equally near, the noisier.

        As in the published code, t = 0 thus has the table's smallest sigma (0.00498 for shift 5), not 0.
        """
        return float(self.sigmas[np.abs(self.timesteps - timestep).argmin()])

    def step(self, timestep: float) -> FlowStep:
        """Return the step at a timestep that goes to the network unchanged."""
        return FlowStep(timestep, self.sigma(timestep))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepList:
    """The steps that a distilled family was trained with; loading/families.py has those of the published ones.

    raw: steps in [0, 1000], noisiest first. warp: whether each is an index of the table instead of a timestep.
    """

    raw: tuple[int, ...]
    shift: float
    warp: bool

    def __post_init__(self) -> None:
        if not self.raw or any(late >= early for early, late in zip(self.raw, self.raw[1:], strict=False)):
            raise ControlError(f"The denoising steps are {list(self.raw)}.", "Give at least one, each below the last.")

    @property
    def schedule(self) -> FlowSchedule:
        """The noise schedule that these steps belong to."""
        return FlowSchedule(shift=self.shift)

    def steps(self) -> tuple[FlowStep, ...]:
        """Return the steps, noisiest first."""
        schedule = self.schedule
        return tuple(schedule.step(schedule.warped(raw) if self.warp else float(raw)) for raw in self.raw)


def spaced_steps(schedule: FlowSchedule, count: int, strength: float = 1.0) -> tuple[FlowStep, ...]:
    """Return `count` warped steps, evenly spaced from int(1000 strength) to 0 inclusive (Krea realtime-video).

    Raises ControlError for fewer than 2 steps, a strength outside (0, 1], or steps that would coincide.
    """
    if count < 2:
        raise ControlError(f"{count} denoising steps were requested.", "Give at least 2: the last one is at 0.")
    if not 0 < strength <= 1:
        raise ControlError(f"The strength is {strength:g}.", "Give a number above 0 and at most 1.")
    raw = [int(step) for step in torch.linspace(strength * schedule.train_steps, 0, count, dtype=torch.float32)]
    if len(set(raw)) != count:
        raise ControlError(
            f"Strength {strength:g} leaves no room for {count} steps.", "Raise the strength or lower the steps."
        )
    return tuple(schedule.step(schedule.warped(step)) for step in raw)


def camera_steps(steps: Sequence[FlowStep], schedule: FlowSchedule, noise_scale: float) -> tuple[FlowStep, ...]:
    """Return the first step, at int(1000 s) - 100 for latents mixed with noise scale s, and the other steps below it.

    StreamDiffusionV2's video-to-video entry: the timestep stands for less noise than was mixed in. noise_scale: s in
    (0.1, 1].
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
    """x_t = (1 - sigma) x0 + sigma noise. Latents [B, C, F, H, W]; sigmas [B, F], one for each frame."""
    level = frame_levels(sigmas)
    return ((1.0 - level) * x0.to(torch.float64) + level * noise.to(torch.float64)).to(x0.dtype)


def denoised(latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """x0 = x_t - sigma v, as the network predicts v = noise - x0. Latents [B, C, F, H, W]; sigmas [B, F]."""
    return (latents.to(torch.float64) - frame_levels(sigmas) * velocity.to(torch.float64)).to(latents.dtype)


def euler_step(
    latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor, next_sigmas: torch.Tensor
) -> torch.Tensor:
    """x' = x + (sigma' - sigma) v: an Euler step of the probability-flow ODE, for undistilled models."""
    change = frame_levels(next_sigmas) - frame_levels(sigmas)
    return (latents.to(torch.float64) + change * velocity.to(torch.float64)).to(latents.dtype)


def guided(velocity: torch.Tensor, negative: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """v_n + g (v - v_n): classifier-free guidance (Ho and Salimans 2022), v_n of the negative prompt; g = 1 is off."""
    return negative + scale * (velocity - negative)
