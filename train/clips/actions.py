"""Owns the actions: their names, their speeds, how they are drawn for training, and sums that stop at bounds.

An action is one vector for each latent frame; latent k >= 1 acts on the transitions into the pixel frames 4k-3 .. 4k,
latent 0 (frame 0 alone) on none. Knows no motions and no pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES

from .motions import FRAMES_PER_LATENT

SPEED = 1.5 / 128
"""Of camera_x, camera_y, push_x and push_y at full deflection, in frame sides a pixel frame, as seen on the screen."""
ZOOM_SPEED = 0.012
"""Of camera_zoom at full deflection: logarithm of the factor of a pixel frame."""

IDLE_CLIPS = 0.3
"""Share of clips without any action."""
HELD_LATENTS = (2, 8)
"""How long a command is held."""
REACH = (math.inf, 2.4, 3.0, 3.0, 3.0)
"""How far, in latents at full deflection, an axis goes from where it began: within the world's bounds, mostly. Where
commands ran into them, 24 to 42 % of what was commanded did not happen, and a model answered all of it too weakly.
"""
HEEDLESS_CLIPS = 0.05
"""Share of clips whose commands run into the bounds all the same."""
RELEASED, TWO_AXES, FULL_DEFLECTION = 0.2, 0.4, 0.5
"""Shares of commands: none at all, two axes at once, values of full deflection or more."""
MIN, MAX = 0.2, 1.4
"""Of all values. Beyond full deflection nobody commands: a model draws the edge of what it has seen too weakly (0.71
of full speed where half of it came out as 0.88), so full speed is not the edge, and what the decoder delays can be made
up for by a gain (train.video.export).
"""


def frame_count(latents: int) -> int:
    """Pixel frames of so many latent frames."""
    return 1 + FRAMES_PER_LATENT * (latents - 1)


def sample_actions(n: int, latents: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Actions float32 [n, latents, 5] within MOST on `device` (the generator's): three of ten have none, the others
    commands on one or two axes, each held for 2 to 8 latents, that turn back at REACH. Full speed is as frequent on
    axes with a bound as on the others.
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
    minimum = torch.where(uniform(n, count, 1) < FULL_DEFLECTION, 1.0, MIN)
    size = minimum + (MAX - minimum) * uniform(n, count, len(ACTION_NAMES))
    values = sign * size * (order < axes) * (uniform(n, count, 1) >= RELEASED)
    values = values * (uniform(n, 1, 1) >= IDLE_CLIPS)
    given = values.gather(1, command.unsqueeze(-1).expand(-1, -1, len(ACTION_NAMES)))
    heedless = uniform(n, 1, 1) < HEEDLESS_CLIPS
    return torch.where(heedless, given, within_reach(given, command))


def within_reach(actions: Tensor, command: Tensor) -> Tensor:
    """Actions [n, L, 5] of commands numbered int64 [n, L], as they stay within REACH: a command that would leave it
    goes on the other way, as fast.
    """
    reach = torch.tensor(REACH, device=actions.device)
    place, way, kept = torch.zeros_like(actions[:, 0]), torch.ones_like(actions[:, 0]), []
    begins = torch.cat([torch.ones_like(command[:, :1]), command.diff(dim=1)], 1) != 0
    for value, new in zip(actions.unbind(1), begins.unsqueeze(-1).unbind(1), strict=True):
        ahead = torch.where(new, value, value * way)
        kept.append(turned_back(ahead, place, reach))
        way = torch.where(kept[-1] == value, 1.0, -1.0)
        place = place + kept[-1]
    return torch.stack(kept, 1)


def turned_back(action: Tensor, place: Tensor, reach: Tensor) -> Tensor:
    """The action; the other way on axes that it would take from `place` beyond `reach`, in latents at full speed."""
    return torch.where((place + action).abs() > reach, -action, action)


def frame_actions(actions: Tensor) -> Tensor:
    """The action of the transition into each pixel frame: [B, L, 5] to [B, 1 + 4 (L - 1), 5]; frame 0 has none."""
    later = actions[:, 1:].repeat_interleave(FRAMES_PER_LATENT, 1)
    return torch.cat([torch.zeros_like(actions[:, :1]), later], 1)


def bounded_sum(start: Tensor, steps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x[t] = clamp(x[t-1] + steps[t], low[t], high[t]) with x[-1] = start, all [B, F] but start [B, 1].

    Such clamped shifts compose to clamped shifts, so that the whole path takes log2(F) rounds (the parallel prefix
    sum of Hillis and Steele 1986) instead of a loop over frames.
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
