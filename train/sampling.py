"""Owns few-step generation for training and scoring: the LCM grid and its recurrence. Independent of captions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .diffusion import Schedule
from .networks import LCM_ORIGIN_STEPS, TRAIN_STEPS

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x0 [B, 4, 48, 48] from x_t and t int64 [B]."""


def lcm_steps(count: int, strength: float = 1.0) -> list[int]:
    """The timesteps that diffusers' LCMScheduler.set_timesteps(count, strength=strength) chooses, largest first."""
    stride = TRAIN_STEPS // LCM_ORIGIN_STEPS
    origin = [i * stride - 1 for i in range(1, int(LCM_ORIGIN_STEPS * strength) + 1)][::-1]
    return [origin[i * len(origin) // count] for i in range(count)]


@torch.no_grad()
def lcm_chain(
    schedule: Schedule,
    denoise: Denoise,
    noise: Tensor,
    steps: list[int],
    generator: torch.Generator,
    start: Tensor | None,
) -> Tensor:
    """Denoise noise [B, 4, 48, 48] (added to start at steps[0], if given) through steps, with fresh noise in between.

    The multistep consistency sampling of Luo et al. (2023); the skip weight of LCM's boundary condition is omitted (it
    is below 1e-4 from t = 19 on).
    """
    full = noise.shape[0]
    first = torch.full((full,), steps[0], device=noise.device)
    x = noise if start is None else schedule.noised(start, noise, first)
    x0 = x
    for index, step in enumerate(steps):
        t = torch.full((full,), step, device=noise.device)
        if index:
            fresh = torch.randn(noise.shape, generator=generator, device=noise.device)
            x = schedule.noised(x0, fresh, t)
        x0 = denoise(x.contiguous(memory_format=torch.channels_last), t)
    return x0


@torch.no_grad()
def ddim_chain(schedule: Schedule, denoise: Denoise, noise: Tensor, count: int) -> Tensor:
    """Deterministic sampling of the teacher in count uniform steps (Song et al. 2021, equation 12 with sigma 0)."""
    steps = [int(t) for t in torch.linspace(TRAIN_STEPS - 1, 19, count)]
    x = noise
    for index, step in enumerate(steps):
        t = torch.full((x.shape[0],), step, device=x.device)
        x0 = denoise(x.contiguous(memory_format=torch.channels_last), t)
        if index == len(steps) - 1:
            return x0
        a, b = schedule.at(t)
        following = torch.full_like(t, steps[index + 1])
        x = schedule.noised(x0, (x - a * x0) / b, following)
    return x
