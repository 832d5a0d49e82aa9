"""Owns the training schedule of a published model: from a diffusers scheduler_config.json to abar_t.

Independent of steps and latents; pipelines/image/schedule.py derives timesteps and noise levels from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from pipelines.core.errors import ModelLayoutError
from pipelines.image.model import ScheduleConfig


def _linear(start: float, end: float, steps: int) -> torch.Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float32)


def _scaled_linear(start: float, end: float, steps: int) -> torch.Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2


_BETAS: Mapping[str, Callable[[float, float, int], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
}


def schedule_config(config: Mapping[str, Any]) -> ScheduleConfig:
    """Return the training schedule that a scheduler's configuration describes.

    abar_t is accumulated in float32, as in diffusers, so that both tables are bit-identical.
    Raises ModelLayoutError for an unknown beta_schedule.
    """
    steps = int(config.get("num_train_timesteps", 1000))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        kind = str(config.get("beta_schedule", "linear"))
        if kind not in _BETAS:
            raise ModelLayoutError(
                f"The scheduler's beta_schedule {kind!r} is unknown.", f"Known: {', '.join(_BETAS)}."
            )
        betas = _BETAS[kind](float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02)), steps)
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    if config.get("rescale_betas_zero_snr"):
        alphas_cumprod = _zero_terminal_snr(alphas_cumprod)
    return ScheduleConfig(
        alphas_cumprod=alphas_cumprod.numpy().astype(np.float64),
        original_inference_steps=int(config.get("original_inference_steps", 50)),
        timestep_scaling=float(config.get("timestep_scaling", 10.0)),
    )


def _zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, algorithm 1.

    abar_T is set to 2^-24 (as in diffusers' Euler scheduler), since computing x0 from epsilon divides by its root.
    """
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    rescaled = ((root - last) * (first / (first - last))) ** 2
    rescaled[-1] = 2**-24
    return rescaled
