"""Owns a slot's position on the noise schedule: timesteps from steps and strength, noise levels from timesteps.

Independent of latents, guidance and step functions.
"""

from __future__ import annotations

import math

from pipelines.core.errors import ControlError

from .model import ScheduleConfig


def timesteps(config: ScheduleConfig, steps: int, strength: float) -> tuple[int, ...]:
    """Return a slot's timesteps, noisiest first, each in [0, T): exactly those of diffusers' LCMScheduler.

    With k = T // original steps, the original timesteps k i - 1, i = 1 .. floor(original * strength), are traversed
    backwards and `steps` of them picked evenly (Luo et al. 2023, Latent Consistency Models, section 4.3, skipping
    steps). Raises ControlError, with the remedy, when strength leaves fewer of them than `steps`.
    """
    train_steps, original = len(config.alphas_cumprod), config.original_inference_steps
    count = int(original * strength)
    if count < steps:
        needed = next(s for i in range(1, 101) if int(original * (s := i / 100)) >= min(steps, original))
        raise ControlError(
            f"Strength {strength:g} leaves room for only {count} of the {steps} steps requested "
            f"(this model has {original} timesteps at strength 1).",
            f"Raise strength to at least {needed:g}, or lower steps to {max(count, 1)}.",
        )
    stride, apart = train_steps // original, count / steps
    return tuple((count - math.floor(pick * apart)) * stride - 1 for pick in range(steps))


def even_timesteps(config: ScheduleConfig, steps: int, strength: float) -> tuple[int, ...]:
    """Return a slot's timesteps for many steps, noisiest first: evenly spaced from T * strength down.

    At strength 1 they are those of diffusers' spacing "trailing" (Lin et al. 2023, table 2). Below, where
    steps / strength is a whole number, they are the last `steps` of so many, as in diffusers' image-to-image pipelines.
    Raises ControlError, with the remedy, when strength leaves fewer timesteps than `steps`.
    """
    train_steps = len(config.alphas_cumprod)
    top = round(train_steps * strength)
    if top < steps:
        raise ControlError(
            f"Strength {strength:g} leaves room for only {top} of the {steps} steps requested.",
            f"Raise strength to at least {math.ceil(100 * steps / train_steps) / 100:g}, or lower steps to {top}.",
        )
    return tuple(round(top - index * top / steps) - 1 for index in range(steps))


def levels(config: ScheduleConfig, timestep: int) -> tuple[float, float]:
    """Return (a, b) = (sqrt(abar_t), sqrt(1 - abar_t)): x_t = a x_0 + b noise (Ho et al. 2020, equation 4)."""
    alpha_bar = float(config.alphas_cumprod[timestep])
    return math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
