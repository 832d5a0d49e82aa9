"""Owns how clips become pictures: each place is painted once and looked at frame by frame, with the subject before it.

Light and style are drawn on every frame, with one sun, moon and set of lamps for the clip; only snow falls. All
randomness comes from the torch generator given. Knows sprites as a tensor and everything else as indices.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES
from train.lights import LIGHT_PAINTERS, draw_tables
from train.styles import STYLE_PAINTERS
from train.world import ellipse_shadow, find_foot, paint_places, premultiplied, sample_gain

from .actions import frame_count
from .motions import FRAMES_PER_SECOND, ClipSpec, motion_curves
from .paths import VIEW, ClipPaths, sample_start, trace_paths

OVERSAMPLING = 2
"""Texels of the painting for a pixel of the frame at zoom 1, which keeps moving edges from shimmering."""
SHADOW_FADE = 0.35
"""Height above the ground, in frame sides, at which a contact shadow would be gone."""
FOOT_DEPTH = 0.18
"""How much of a sprite, from below and in sides of its square, its shadow is as wide as."""


class Clips(NamedTuple):
    """frames: [B, 3, F, S, S] float32 in 0..1, F = 1 + 4 (latents - 1). camera: [B, F, 3], x (right) and y (up) of the
    frame's middle in px of the frame at zoom 1, and the logarithm of the zoom. subject: [B, F, 2], middle of the
    sprite's square in px from the frame's left and top edges (without meaning where there is no subject).
    """

    frames: Tensor
    camera: Tensor
    subject: Tensor


def _soften(picture: Tensor, mode: str) -> Tensor:
    """Means of 2x2 texels of [B, C, H, H], standing at the texels' corners: [B, C, H + 1, H + 1]."""
    return functional.avg_pool2d(functional.pad(picture, (1, 1, 1, 1), mode=mode), 2, 1)


def _look(texture: Tensor, gx: Tensor, gy: Tensor, padding: str) -> Tensor:
    """Sample [n, C, T, T] at gx, gy [n, F, S, S], -1..1 from edge to edge: [n * F, C, S, S]."""
    n, frames, size, _ = gx.shape
    grid = torch.stack([gx, gy], -1).view(n, frames * size, size, 2)
    seen = functional.grid_sample(texture, grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return seen.view(n, -1, frames, size, size).transpose(1, 2).reshape(n * frames, -1, size, size)


def view_places(painting: Tensor, paths: ClipPaths, size: int) -> Tensor:
    """Frames [n * F, 3, size, size] of paintings [n, 3, T, T], which sideways go on mirrored."""
    texture = _soften(painting, "replicate")
    line = ((torch.arange(size, device=painting.device) + 0.5) / size - 0.5) * (2 * VIEW)
    scale = torch.exp(-paths.log_zoom).unsqueeze(-1)
    gx = line * scale + 2 * VIEW * paths.camera_x.unsqueeze(-1)
    gy = line * scale - 2 * VIEW * paths.camera_y.unsqueeze(-1)
    shape = (*gx.shape, size)
    return _look(texture, gx.unsqueeze(2).expand(shape), gy.unsqueeze(3).expand(shape), "reflection")


def view_subjects(layer: Tensor, paths: ClipPaths, size: int) -> Tensor:
    """Frames [n * F, 4, size, size] with premultiplied alpha of layers [n, 4, h, h] with premultiplied alpha."""
    line = (torch.arange(size, device=layer.device) + 0.5) / size
    dx, dy = line - paths.x[..., None, None], line.view(-1, 1) - paths.y[..., None, None]
    cos, sin = paths.angle.cos()[..., None, None], paths.angle.sin()[..., None, None]
    scale = 2 / paths.side[..., None, None]
    return _look(_soften(layer, "constant"), (dx * cos + dy * sin) * scale, (dy * cos - dx * sin) * scale, "zeros")


def _shadows(paths: ClipPaths, left: Tensor, right: Tensor, size: int) -> Tensor:
    """Strength [n * F, 1, size, size] of the shadows on the ground; left, right: [n, 1] ends of the foot, in sides from
    the square's middle.
    """

    def flat(values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1, 1)

    start, end = flat(paths.ground_x + left * paths.side), flat(paths.ground_x + right * paths.side)
    return ellipse_shadow(flat(paths.foot), start, end, size) * flat(1 - paths.lift / SHADOW_FADE).clamp(min=0)


class _Cast(NamedTuple):
    """What B clips are drawn from. painting: [B, 3, T, T]. layer: premultiplied sprites [B, 4, h, h], transparent where
    there is no subject. left, right: [B, 1] ends of its foot. standing: [B, 1, 1, 1], 1 where it casts a shadow. gain:
    brightness [B, 1, 1, 1].
    """

    painting: Tensor
    layer: Tensor
    left: Tensor
    right: Tensor
    standing: Tensor
    gain: Tensor
    paths: ClipPaths

    def rows(self, rows: Tensor) -> _Cast:
        """Some of the clips."""
        return _Cast(
            painting=self.painting.index_select(0, rows),
            layer=self.layer.index_select(0, rows),
            left=self.left.index_select(0, rows),
            right=self.right.index_select(0, rows),
            standing=self.standing.index_select(0, rows),
            gain=self.gain.index_select(0, rows),
            paths=ClipPaths(*(path.index_select(0, rows) for path in self.paths)),
        )


def _fit_sprites(layer: Tensor, size: int) -> Tensor:
    """Sprites [B, 4, h, h] with premultiplied alpha, made smaller where frames of `size` px would skip their texels."""
    factor = layer.shape[-1] // (OVERSAMPLING * size // 2)
    return functional.interpolate(layer, size=layer.shape[-1] // factor, mode="area") if factor > 1 else layer


def _gather_cast(
    spec: ClipSpec, sprites: Tensor, actions: Tensor, generator: torch.Generator, size: int, *, any_phase: bool
) -> _Cast:
    """Paint the places and trace the paths of all clips."""
    count, device = spec.subject.shape[0], sprites.device
    painting, grounded = paint_places(spec.place, generator, round(OVERSAMPLING * size / VIEW))
    who = spec.subject.clamp(min=0)
    foot, left, right = (
        (side.view(-1, 1) - 0.5).index_select(0, who) for side in find_foot(sprites[:, 3:], FOOT_DEPTH)
    )
    curves = motion_curves(spec.motion, frame_count(actions.shape[1]), generator, any_phase=any_phase)
    there = (spec.subject >= 0).view(-1, 1, 1, 1)
    return _Cast(
        painting=painting,
        layer=_fit_sprites(premultiplied(sprites.index_select(0, who)), size) * there,
        left=left,
        right=right,
        standing=grounded.view(-1, 1, 1, 1) * there,
        gain=sample_gain(count, generator, device),
        paths=trace_paths(sample_start(actions, generator), curves, actions, foot, sprites.shape[-1]),
    )


def _draw(cast: _Cast, size: int) -> Tensor:
    """Frames [n * F, 3, size, size] in 0..1 of all clips of a cast, before light and style."""
    frames = cast.paths.x.shape[1]
    picture = view_places(cast.painting, cast.paths, size)
    shadow = _shadows(cast.paths, cast.left, cast.right, size) * cast.standing.repeat_interleave(frames, 0)
    layer = view_subjects(cast.layer, cast.paths, size)
    picture = picture * (1 - shadow) * (1 - layer[:, 3:]) + layer[:, :3]
    return (picture * cast.gain.repeat_interleave(frames, 0)).clamp(0, 1)


def _groups(spec: ClipSpec, clips: int) -> list[tuple[int, int, list[int]]]:
    """(light, style, rows), at most `clips` rows each: the one place that waits for the device."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, key in enumerate(torch.stack([spec.light, spec.style], 1).tolist()):
        found[key[0], key[1]].append(row)
    return [(*key, rows[i : i + clips]) for key, rows in sorted(found.items()) for i in range(0, len(rows), clips)]


def render_clips(
    spec: ClipSpec,
    sprites: Tensor,
    actions: Tensor,
    generator: torch.Generator,
    *,
    latents: int,
    size_px: int = 128,
    group_frames: int = 512,
    any_phase: bool = False,
) -> Clips:
    """Render a batch of clips.

    spec: B combinations. sprites: [S, 4, h, h] float straight-alpha RGBA in 0..1. actions: [B, latents, 5] within MOST.
    group_frames: frames drawn at once (one clip at least), which bounds memory and changes nothing else. any_phase:
    whether motions begin anywhere in their period. Everything lies on the generator's device. Raises ValueError for
    other shapes.
    """
    count, device, frames = spec.subject.shape[0], sprites.device, frame_count(latents)
    if sprites.ndim != 4 or sprites.shape[1] != 4 or sprites.shape[2] != sprites.shape[3]:
        raise ValueError(f"sprites must be [S, 4, h, h] RGBA, got {tuple(sprites.shape)}")
    if actions.shape != (count, latents, len(ACTION_NAMES)):
        raise ValueError(f"actions must be {(count, latents, len(ACTION_NAMES))}, got {tuple(actions.shape)}")
    cast = _gather_cast(spec, sprites, actions, generator, size_px, any_phase=any_phase)
    result = torch.empty(count, 3, frames, size_px, size_px, device=device)
    tables = draw_tables(result[:, :, 0], generator)
    time_s = torch.arange(frames, device=device, dtype=torch.float32) / FRAMES_PER_SECOND
    for light, style, group in _groups(spec, max(1, group_frames // frames)):
        rows = torch.tensor(group, device=device)
        held = tuple(table.index_select(0, rows).repeat_interleave(frames, 0) for table in tables[light])
        lit = LIGHT_PAINTERS[light].paint(_draw(cast.rows(rows), size_px), held, time_s.repeat(len(group))).clamp(0, 1)
        drawn = STYLE_PAINTERS[style](lit).clamp(0, 1)
        result.index_copy_(0, rows, drawn.view(len(group), frames, 3, size_px, size_px).transpose(1, 2))
    paths = cast.paths
    camera = torch.stack([paths.camera_x * size_px, paths.camera_y * size_px, paths.log_zoom], -1)
    return Clips(result, camera, torch.stack([paths.x, paths.y], -1) * size_px)
