"""Owns where on the noise schedule a slot's steps lie: timesteps from steps and strength, levels from timesteps.

Knows no latents, no guidance and no step function.
"""

from __future__ import annotations

import math

import numpy as np

from pipelines.core.errors import ControlError

from .model import ScheduleConfig


def timesteps(config: ScheduleConfig, steps: int, strength: float) -> tuple[int, ...]:
    """The timesteps of a slot, noisiest first, each in [0, T): exactly those of diffusers' LCMScheduler.set_timesteps.

    With k = T // original steps, the origin k i - 1 for i = 1 .. floor(original * strength) is walked backwards and
    `steps` entries are taken evenly (Luo et al. 2023, Latent Consistency Models, section 4.3, skipping steps).
    Raises ControlError, with the remedy, when strength leaves fewer origin steps than `steps`.
    """
    train_steps, original = len(config.alphas_cumprod), config.original_inference_steps
    count = int(original * strength)
    if count < steps:
        needed = next(s for i in range(1, 101) if int(original * (s := i / 100)) >= min(steps, original))
        raise ControlError(
            f"Strength {strength:g} leaves room for {count} of the {steps} steps asked for "
            f"(this model walks {original} steps at strength 1).",
            f"Raise strength to at least {needed:g}, or lower steps to {max(count, 1)}.",
        )
    stride = train_steps // original
    origin = (np.arange(1, count + 1, dtype=np.int64) * stride - 1)[::-1]
    picks = np.floor(np.linspace(0, count, num=steps, endpoint=False)).astype(np.int64)
    return tuple(int(t) for t in origin[picks])


def levels(config: ScheduleConfig, timestep: int) -> tuple[float, float]:
    """(a, b) = (sqrt(abar_t), sqrt(1 - abar_t)): x_t = a x_0 + b noise (Ho et al. 2020, equation 4)."""
    alpha_bar = float(config.alphas_cumprod[timestep])
    return math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
