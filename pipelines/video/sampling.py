"""Owns how one step brings a chunk's latents to the next noise level: the samplers, in one table.

Pure functions over pipelines/video/flow.py. Knows no stream and no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from .flow import FlowStep, denoised, euler_step, noised

Noise = Callable[[], torch.Tensor]
Sampler = Callable[[torch.Tensor, torch.Tensor, FlowStep, FlowStep | None, Noise], torch.Tensor]
"""(latents, velocity, this step, the next one or None, noise for the next) -> latents; [C, F, h, w].

The last step gives x0. `noise` is called where the sampler needs some.
"""


def renoise(
    latents: torch.Tensor, velocity: torch.Tensor, now: FlowStep, following: FlowStep | None, noise: Noise
) -> torch.Tensor:
    """x0 = x - sigma v, then fresh noise: x' = (1 - sigma') x0 + sigma' n (Self-Forcing, algorithm 2)."""
    clean = denoised(latents[None], velocity[None], _level(now.sigma, latents))
    if following is None:
        return clean[0]
    return noised(clean, noise()[None], _level(following.sigma, latents))[0]


def euler(
    latents: torch.Tensor, velocity: torch.Tensor, now: FlowStep, following: FlowStep | None, noise: Noise
) -> torch.Tensor:
    """x' = x + (sigma' - sigma) v, the last sigma' is 0."""
    target = 0.0 if following is None else following.sigma
    return euler_step(latents[None], velocity[None], _level(now.sigma, latents), _level(target, latents))[0]


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"renoise": renoise, "euler": euler})
"""By the names of VideoPreset.sampler."""


def _level(sigma: float, like: torch.Tensor) -> torch.Tensor:
    """[1, 1] float64 on the device; a fill, nothing waits."""
    return torch.full((1, 1), sigma, dtype=torch.float64, device=like.device)
