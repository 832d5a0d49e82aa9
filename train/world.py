"""Owns the procedural world: which combinations exist, which are held out, and how a batch of them is rendered.

A scene is a subject sprite in a place, under a light, drawn in a style. All randomness comes from the given torch
generator. Sprites are a tensor, everything else indices; wording is in captions.py.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from .drawing import smoothstep
from .lights import apply_lights
from .places import PLACE_PAINTERS, STUDIO_PLACE
from .styles import apply_styles
from .vocabulary import SUBJECTS
from .vocabulary_world import LIGHTS, PLACES, STYLES

__all__ = [
    "SPRITE_MARGIN_PX",
    "SceneSpec",
    "apply_lights",
    "apply_styles",
    "ellipse_shadow",
    "find_foot",
    "is_held_out",
    "paint_places",
    "premultiplied",
    "render_scenes",
    "sample_gain",
    "sample_specs",
]

HELD_OUT_FRACTION = 0.10
NO_SUBJECT, NO_PLACE, DAY_LIGHT, PLAIN_STYLE = 0.06, 0.08, 0.40, 0.30
SPRITE_MARGIN_PX = 4
"""Transparent border of a sprite, not counted in its size."""


class SceneSpec(NamedTuple):
    """A batch of combinations, each field int64 [B]: subject and place -1 mean none; light 0 is day, style 0 is
    plain.
    """

    subject: Tensor
    place: Tensor
    light: Tensor
    style: Tensor


def is_held_out(subject: int, place: int, light: int, style: int) -> bool:
    """Whether a combination is held out of training: the first 8 bytes of sha256 of "subject/place/light/style" are
    below 10 % of their range.
    """
    digest = hashlib.sha256(f"{subject}/{place}/{light}/{style}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_FRACTION * 2**64


@functools.cache
def _held_out_table(subjects: int) -> Tensor:
    """is_held_out for every combination, bool [subjects + 1, places + 1, lights, styles]; index 0 of the first two
    is none.
    """
    combinations = itertools.product(
        range(-1, subjects), range(-1, len(PLACES)), range(len(LIGHTS)), range(len(STYLES))
    )
    flags = torch.tensor([is_held_out(*combination) for combination in combinations])
    return flags.view(subjects + 1, len(PLACES) + 1, len(LIGHTS), len(STYLES))


def _pick(n: int, count: int, first: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Index 0 with probability `first`, otherwise uniform in 1..count-1; int64 [n]."""
    other = torch.randint(1, count, (n,), generator=generator, device=device)
    return torch.where(torch.rand(n, generator=generator, device=device) < first, torch.zeros_like(other), other)


def sample_specs(
    n: int, generator: torch.Generator, device: torch.device, held_out: bool | None, *, subjects: int = len(SUBJECTS)
) -> SceneSpec:
    """Draw n combinations on `device` (the generator's).

    held_out: False for training combinations only, True for held-out ones only, None for both. subjects: the number of
    subjects.
    """
    if n < 1 or subjects < 1:
        raise ValueError(f"n={n} and subjects={subjects} must be at least 1")
    table = _held_out_table(subjects).to(device)
    rounds: list[Tensor] = []
    found = 0
    while found < n:
        draw = max(64, n * (14 if held_out else 2))
        candidate = torch.stack(
            [
                _pick(draw, subjects + 1, NO_SUBJECT, generator, device) - 1,
                _pick(draw, len(PLACES) + 1, NO_PLACE, generator, device) - 1,
                _pick(draw, len(LIGHTS), DAY_LIGHT, generator, device),
                _pick(draw, len(STYLES), PLAIN_STYLE, generator, device),
            ]
        )
        if held_out is not None:
            flags = table[candidate[0] + 1, candidate[1] + 1, candidate[2], candidate[3]]
            candidate = candidate[:, flags == held_out]
        rounds.append(candidate)
        found += candidate.shape[1]
    return SceneSpec(*torch.cat(rounds, 1)[:, :n].unbind(0))


class _Pose(NamedTuple):
    """A sprite's pose, each [B, 1, 1] in frame units: centre, side of the sprite's square, rotation (radians), flip
    (+-1).
    """

    x: Tensor
    y: Tensor
    side: Tensor
    angle: Tensor


def _sample_pose(n: int, sprite_px: int, generator: torch.Generator, device: torch.device) -> _Pose:
    """Poses vary little (no mirroring), so that a network of six million weights can learn what subjects look like."""
    u = torch.rand(4, n, 1, 1, generator=generator, device=device)
    side = (0.50 + 0.16 * u[2]) * sprite_px / (sprite_px - 2 * SPRITE_MARGIN_PX)
    angle = (u[3] * 2 - 1) * math.radians(5)
    return _Pose(0.43 + 0.14 * u[0], 0.45 + 0.14 * u[1], side, angle)


def premultiplied(sprite: Tensor) -> Tensor:
    """RGBA [B, 4, h, w] with straight alpha to premultiplied alpha."""
    return torch.cat([sprite[:, :3] * sprite[:, 3:], sprite[:, 3:]], 1)


def _place_sprites(sprite: Tensor, pose: _Pose, size: int) -> Tensor:
    """Resample straight-alpha sprites [B, 4, h, h] into the frame: premultiplied RGBA [B, 4, size, size]."""
    line = (torch.arange(size, device=sprite.device, dtype=sprite.dtype) + 0.5) / size
    dx, dy = line.view(1, 1, size) - pose.x, line.view(1, size, 1) - pose.y
    u = dx * pose.angle.cos() + dy * pose.angle.sin()
    v = dy * pose.angle.cos() - dx * pose.angle.sin()
    grid = torch.stack([u, v], -1) * (2 / pose.side).unsqueeze(-1)
    return functional.grid_sample(
        premultiplied(sprite), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def find_foot(alpha: Tensor, depth: float = 0.10) -> tuple[Tensor, Tensor, Tensor]:
    """The foot of the shape alpha [B, 1, H, H]: (lowest y, left x, right x), each [B, 1, 1, 1] in sides of the square;
    left and right are those of its lowest part, `depth` sides high.
    """
    size = alpha.shape[-1]
    line = (torch.arange(size, device=alpha.device, dtype=alpha.dtype) + 0.5) / size
    solid = alpha[:, 0] > 0.5
    foot = (solid.any(2) * line).amax(1).view(-1, 1, 1, 1)
    near_foot = solid & (line.view(1, size, 1) > foot[:, 0] - depth)
    columns = near_foot.any(1)
    right = (columns * line).amax(1).view(-1, 1, 1, 1)
    left = 1 - (columns * (1 - line)).amax(1).view(-1, 1, 1, 1)
    return foot, left, right


def ellipse_shadow(foot: Tensor, left: Tensor, right: Tensor, size: int) -> Tensor:
    """Strength [B, 1, size, size] of a soft flat elliptical shadow on the ground from left to right at height foot
    (each [B, 1, 1, 1] in frame sides).
    """
    line = (torch.arange(size, device=foot.device, dtype=foot.dtype) + 0.5) / size
    half = (right - left).clamp(min=0.04) * 0.5 + 0.05
    distance = ((line.view(1, 1, 1, size) - (left + right) / 2) / half) ** 2 + (
        (line.view(1, 1, size, 1) - foot) / 0.035
    ) ** 2
    return 0.42 * (1 - smoothstep(0.0, 1.0, distance.sqrt()))


def paint_places(place: Tensor, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Backgrounds [B, 3, size, size] and whether each is grounded [B], painted place by place."""
    picture = torch.empty(place.shape[0], 3, size, size, device=place.device)
    grounded = torch.zeros(place.shape[0], device=place.device)
    for index, painter in ((-1, STUDIO_PLACE), *enumerate(PLACE_PAINTERS)):
        rows = (place == index).nonzero().flatten()
        if rows.numel():
            picture.index_copy_(0, rows, painter(int(rows.numel()), size, generator, place.device))
            grounded.index_fill_(0, rows, float(painter.grounded))
    return picture, grounded


def sample_gain(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Brightness factors of n pictures, [n, 1, 1, 1]."""
    return 0.94 + 0.12 * torch.rand(n, 1, 1, 1, generator=generator, device=device)


def render_scenes(
    spec: SceneSpec, sprites: Tensor, generator: torch.Generator, size: int = 192
) -> tuple[Tensor, Tensor]:
    """Render a batch of scenes.

    spec: B combinations. sprites: [S, 4, h, h] float straight-alpha RGBA in 0..1, on the generator's device.
    Returns (plain, styled), both [B, 3, size, size] float32 in 0..1 with the same composition; plain is the lit picture
    before its style.
    """
    return render_covered(spec, sprites, generator, size)[:2]


def render_covered(
    spec: SceneSpec, sprites: Tensor, generator: torch.Generator, size: int = 192
) -> tuple[Tensor, Tensor, Tensor]:
    """As render_scenes, plus the subject's coverage of each pixel: [B, 1, size, size] in 0..1."""
    if sprites.ndim != 4 or sprites.shape[1] != 4 or sprites.shape[2] != sprites.shape[3]:
        raise ValueError(f"sprites must be [S, 4, h, h] RGBA, got {tuple(sprites.shape)}")
    picture, grounded = paint_places(spec.place, generator, size)
    pose = _sample_pose(spec.subject.shape[0], sprites.shape[-1], generator, sprites.device)
    layer = _place_sprites(sprites.index_select(0, spec.subject.clamp(min=0)), pose, size)
    layer = layer * (spec.subject >= 0).view(-1, 1, 1, 1)
    alpha = layer[:, 3:]
    shadowed = (grounded * (spec.subject >= 0)).view(-1, 1, 1, 1)
    picture = picture * (1 - ellipse_shadow(*find_foot(alpha), size) * shadowed)
    picture = picture * (1 - alpha) + layer[:, :3]
    gain = sample_gain(picture.shape[0], generator, picture.device)
    plain = apply_lights((picture * gain).clamp(0, 1), spec.light, generator)
    return plain, apply_styles(plain, spec.style), alpha
