"""Owns the samplers, in one table: how one step takes a chunk's latents to the next noise level.

Pure functions over pipelines/video/flow.py. Independent of streams and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from .flow import FlowStep, denoised, euler_step, noised

Noise = Callable[[], torch.Tensor]
Sampler = Callable[[torch.Tensor, torch.Tensor, FlowStep, FlowStep | None, Noise], torch.Tensor]
"""(latents, velocity, this step, next step or None, noise for the next step) -> latents; all [C, F, h, w].

The last step returns x0. `noise` is called only by samplers that use it.
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
    """x' = x + (sigma' - sigma) v; sigma' is 0 after the last step."""
    target = 0.0 if following is None else following.sigma
    return euler_step(latents[None], velocity[None], _level(now.sigma, latents), _level(target, latents))[0]


SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"renoise": renoise, "euler": euler})
"""By the names of VideoPreset.sampler."""


def _level(sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Return sigma as [1, 1] float64 on the device of `like`, by a fill, which does not synchronise."""
    return torch.full((1, 1), sigma, dtype=torch.float64, device=like.device)
