"""Owns the actions: their names, their speeds, how they are sampled for training, and bounded sums.

An action is one vector per latent frame; that of latent k >= 1 acts on the transitions into pixel frames 4k-3 .. 4k,
that of latent 0 (frame 0 only) on none. Independent of motions and pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES

from .motions import FRAMES_PER_LATENT

SPEED = 1.5 / 128
"""Of camera_x, camera_y, push_x and push_y at full deflection, in frame sides per pixel frame, as seen on screen."""
ZOOM_SPEED = 0.012
"""Of camera_zoom at full deflection: log of the factor per pixel frame."""

IDLE_CLIPS = 0.3
"""Share of clips without any action."""
HELD_LATENTS = (2, 8)
"""How long a command is held."""
REACH = (math.inf, 2.4, 3.0, 3.0, 3.0)
"""How far, in latents at full deflection, an axis moves from its start: mostly within the world's bounds. With commands
that ran into the bounds, 24 to 42 % of the commanded motion did not happen, and a model followed all of it too weakly.
"""
HEEDLESS_CLIPS = 0.05
"""Share of clips whose commands may still run into the bounds."""
RELEASED, TWO_AXES, FULL_DEFLECTION = 0.2, 0.4, 0.5
"""Shares of commands: none, two axes at once, values of full deflection or more."""
MIN_ACTION, MAX_ACTION = 0.2, 1.4
"""Of the values. Users never exceed full deflection, but a model follows the extreme of its training range too
weakly (0.71 of full speed, against 0.88 at half), so full speed is not the extreme, and the decoder's delay can be
compensated by a gain (train.video.export).
"""


def frame_count(latents: int) -> int:
    """Number of pixel frames for `latents` latent frames."""
    return 1 + FRAMES_PER_LATENT * (latents - 1)


def sample_actions(n: int, latents: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Actions float32 [n, latents, 5] within MAX_ACTION on `device` (the generator's): three in ten have none, others
    have commands on one or two axes, each held for 2 to 8 latents, that reverse at REACH. Full speed is as frequent on
    bounded axes as on the others.
    """
    if n < 1 or latents < 1:
        raise ValueError(f"n={n} and latents={latents} must be at least 1")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    shortest, longest = HELD_LATENTS
    count = latents // shortest + 2
    held = torch.randint(shortest, longest + 1, (n, count), generator=generator, device=device)
    begun = (uniform(n, 1) * held[:, :1]).floor().long()
    held[:, :1] -= begun
    ends = held.cumsum(1)
    command = (ends.unsqueeze(1) <= torch.arange(latents, device=device).view(1, -1, 1)).sum(2)
    order = uniform(n, count, len(ACTION_NAMES)).argsort(-1)
    axes = 1 + (uniform(n, count, 1) < TWO_AXES).long()
    sign = torch.where(uniform(n, count, len(ACTION_NAMES)) < 0.5, -1.0, 1.0)
    minimum = torch.where(uniform(n, count, 1) < FULL_DEFLECTION, 1.0, MIN_ACTION)
    size = minimum + (MAX_ACTION - minimum) * uniform(n, count, len(ACTION_NAMES))
    values = sign * size * (order < axes) * (uniform(n, count, 1) >= RELEASED)
    values = values * (uniform(n, 1, 1) >= IDLE_CLIPS)
    values_held = values.gather(1, command.unsqueeze(-1).expand(-1, -1, len(ACTION_NAMES)))
    heedless = uniform(n, 1, 1) < HEEDLESS_CLIPS
    return torch.where(heedless, values_held, within_reach(values_held, command))


def within_reach(actions: Tensor, command: Tensor) -> Tensor:
    """Actions [n, L, 5] of commands numbered int64 [n, L], kept within REACH: a command that would leave it continues
    in the opposite direction at the same speed.
    """
    reach = torch.tensor(REACH, device=actions.device)
    place, direction, limited = torch.zeros_like(actions[:, 0]), torch.ones_like(actions[:, 0]), []
    begins = torch.cat([torch.ones_like(command[:, :1]), command.diff(dim=1)], 1) != 0
    for value, new in zip(actions.unbind(1), begins.unsqueeze(-1).unbind(1), strict=True):
        ahead = torch.where(new, value, value * direction)
        limited.append(turned_back(ahead, place, reach))
        direction = torch.where(limited[-1] == value, 1.0, -1.0)
        place = place + limited[-1]
    return torch.stack(limited, 1)


def turned_back(action: Tensor, place: Tensor, reach: Tensor) -> Tensor:
    """The action, reversed on axes that it would take from `place` beyond `reach`, in latents at full speed."""
    return torch.where((place + action).abs() > reach, -action, action)


def frame_actions(actions: Tensor) -> Tensor:
    """The action of the transition into each pixel frame: [B, L, 5] to [B, 1 + 4 (L - 1), 5]; frame 0 has none."""
    later = actions[:, 1:].repeat_interleave(FRAMES_PER_LATENT, 1)
    return torch.cat([torch.zeros_like(actions[:, :1]), later], 1)


def bounded_sum(start: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x[t] = clamp(x[t-1] + steps[t], low[t], high[t]) with x[-1] = start, all [B, F] but start [B, 1].

    Clamped shifts compose to clamped shifts, so the whole path takes log2(F) rounds (the parallel prefix sum of Hillis
    and Steele 1986) instead of a loop over frames.
    """
    shift = steps
    reach, frames = 1, steps.shape[1]
    while reach < frames:
        by, floor, roof = shift[:, reach:], low[:, reach:], high[:, reach:]
        composed = (
            shift[:, :-reach] + by,
            torch.minimum(torch.maximum(low[:, :-reach] + by, floor), roof),
            torch.minimum(torch.maximum(high[:, :-reach] + by, floor), roof),
        )
        shift, low, high = (
            torch.cat([old[:, :reach], new], 1) for old, new in zip((shift, low, high), composed, strict=True)
        )
        reach *= 2
    return torch.minimum(torch.maximum(start + shift, low), high)
