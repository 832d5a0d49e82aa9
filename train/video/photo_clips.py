"""Owns clips of photographs: views that glide over them, drawn in the world's styles, with their captions.

They let the model redraw camera pictures. Independent of networks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as functional
from torch import Tensor

from train.bank import PHOTO_STYLES, PHOTO_SUBJECT, SourceMaterial, photo_crops, uniform
from train.captions import caption
from train.clips.actions import frame_count
from train.clips.motions import ClipSpec
from train.styles import apply_styles
from train.vocabulary_world import STYLES

from .networks import VIDEO_SIZE_PX

SMALLEST_VIEW, MAX_VIEW = 0.55, 0.95
"""Side of a view of a picture, in sides of the picture."""
STILL_VIEWS = 0.1
STYLE_ALONE = 0.3
"""How often a photograph in a style is described by the style only."""


def moving_views(pictures: Tensor, frames: int, size_px: int, generator: torch.Generator) -> Tensor:
    """Clips [n, 3, frames, size, size] of a square view that glides and zooms over each of pictures [n, 3, h, h], from
    one random position to another; a tenth are still.
    """
    n, device = pictures.shape[0], pictures.device
    sides = [uniform(n, SMALLEST_VIEW, MAX_VIEW, generator).view(n, 1) for _ in range(2)]
    ends = [(1 - side) * (2 * torch.rand(n, 2, generator=generator, device=device) - 1) for side in sides]
    still = (torch.rand(n, 1, generator=generator, device=device) < STILL_VIEWS).float()
    line = torch.linspace(0, 1, frames, device=device)
    share = (line * (1 - still)).view(n, frames, 1)
    side = torch.lerp(sides[0].view(n, 1, 1), sides[1].view(n, 1, 1), share)
    centre = torch.lerp(ends[0].view(n, 1, 2), ends[1].view(n, 1, 2), share)
    steps = (torch.arange(size_px, device=device) + 0.5) / size_px * 2 - 1
    x = centre[..., :1, None] + side[..., None] * steps.view(1, 1, 1, -1)
    y = centre[..., 1:, None] + side[..., None] * steps.view(1, 1, -1, 1)
    grid = torch.stack([x.expand(-1, -1, size_px, -1), y.expand(-1, -1, -1, size_px)], -1)
    views = [
        functional.grid_sample(
            pictures, grid[:, frame], mode="bilinear", padding_mode="reflection", align_corners=False
        )
        for frame in range(frames)
    ]
    return torch.stack(views, 2)


def styled_views(
    source: SourceMaterial, clips: int, latents: int, generator: torch.Generator, *, group: int
) -> Iterator[tuple[ClipSpec, Tensor]]:
    """Groups of clips, `clips` in total: (spec, frames [n, 3, F, 128, 128] in 0..1); subject, place: PHOTO_SUBJECT."""
    shares = torch.tensor(PHOTO_STYLES, device=source.device)
    for start in range(0, clips, group):
        n = min(group, clips - start)
        views = moving_views(photo_crops(source, n, generator), frame_count(latents), VIDEO_SIZE_PX, generator)
        style = torch.multinomial(shares, n, replacement=True, generator=generator)
        drawn = apply_styles(views.transpose(1, 2).flatten(0, 1), style.repeat_interleave(views.shape[2]))
        photo, none = torch.full_like(style, PHOTO_SUBJECT), torch.zeros_like(style)
        yield ClipSpec(photo, photo, none, style, none), drawn.view(n, -1, *drawn.shape[1:]).transpose(1, 2)


def photo_caption(style: int, rng: random.Random) -> str:
    """Such as "a photo, pencil sketch", or sometimes only the style."""
    if style > 0 and rng.random() < STYLE_ALONE:
        return STYLES[style].labels[0]
    return caption(-1, -1, 0, style, rng, photo=True)
