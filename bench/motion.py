"""Owns the estimation of camera and subject motion from frame to frame, from optical flow.

Two robust fits of a similarity transform to dense flow: one to the border of the picture (the background, hence the
camera), one to what moves differently, else to the centre (the subject). Independent of named motions and classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.flow import DEFAULT_FLOW, FlowSettings, optical_flow, texture, warp_error
from bench.registration import moved_by, sharpened

BORDER_SHARES = (0.04, 0.22)
"""Where the border used for the background begins and ends, from the edge, as shares of the side: the outermost part
can be static (a watercolour's paper)."""
EXACT_SHARES = (0.02, 0.14)
"""The same for refinement: narrower, since a large subject is fixed on the screen and would bias it."""
ROBUST_PX = 0.35
"""Residual at which a pixel's weight is halved (Cauchy)."""
FIT_ITERATIONS = 5
VISIBLE_TEXTURE = 2e-4
"""Of bench.flow.texture: pixels well below it count as flat and are ignored."""


_MEDIAN_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4),
    (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


class Transitions(NamedTuple):
    """Motion between consecutive frames, each [..., T, k] for T transitions.

    background: (x, y) motion in pixels, right and down, and the log of its magnification about the picture's centre.
    subject: (x, y) of its own centre, log magnification, rotation in radians (clockwise as seen). degree: mean flow
    magnitude in pixels without the largest 1 % of pixels. flicker: the warp error, in levels of 255.
    """

    background: Tensor
    subject: Tensor
    degree: Tensor
    flicker: Tensor

    @staticmethod
    def joined(parts: Sequence[Transitions]) -> Transitions:
        """Consecutive pieces as one, along time (the last axis but one)."""
        return Transitions(*(torch.cat(fields, -2) for fields in zip(*parts, strict=True)))


def transitions(
    frames: Tensor,
    settings: FlowSettings = DEFAULT_FLOW,
    *,
    shrink: int = 2,
    pairs_at_once: int = 512,
    exact: bool = False,
) -> Transitions:
    """Frames of clips [B, F, 3, H, W] in 0..1 (or uint8) -> Transitions of [B, F - 1, k], on the frames' device.

    shrink: first downscale frames by this factor, by averaging, which is as accurate here and much faster; results
    are still in pixels of the original frames. exact: refine both motions on the pictures, including specks, to measure
    scenes without falling snow; the motion judge is fitted without.
    """
    batch, count = frames.shape[:2]
    if count < 2:
        raise ValueError(f"a clip of {count} frames has no transitions: give at least 2")
    parts = []
    small = shrunk(frames.flatten(0, 1), shrink)
    small = small.view(batch, count, *small.shape[1:])
    first, second = small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1)
    for start in range(0, first.shape[0], pairs_at_once):
        rows = slice(start, start + pairs_at_once)
        parts.append(_of_pairs(first[rows], second[rows], settings, exact=exact))
    background, subject, degree, flicker = (
        torch.cat(field).view(batch, count - 1, -1) for field in zip(*parts, strict=True)
    )
    return Transitions(
        background * background.new_tensor([shrink, shrink, 1]),
        subject * subject.new_tensor([shrink, shrink, 1, 1]),
        degree * shrink,
        flicker,
    )


def despeckled(pictures: Tensor) -> Tensor:
    """[N, C, H, W] without specks of a pixel or two, such as falling snow: the median of 3 x 3 pixels.

    By Devillard's 19-exchange network (1998), which is faster than sorting.
    """
    height, width = pictures.shape[-2:]
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    p = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    for a, b in _MEDIAN_EXCHANGES:
        p[a], p[b] = torch.minimum(p[a], p[b]), torch.maximum(p[a], p[b])
    return p[4]


def shrunk(pictures: Tensor, factor: int) -> Tensor:
    """Pictures [N, C, H, W] (0..1, or uint8, which is converted) averaged over factor x factor pixels."""
    pixels = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    return functional.avg_pool2d(pixels, factor) if factor > 1 else pixels


def _of_pairs(first: Tensor, second: Tensor, settings: FlowSettings, *, exact: bool) -> Transitions:
    clear, then = (first, second) if exact else (despeckled(first), despeckled(second))
    flow = optical_flow(clear, then, settings)
    seen = texture(clear, settings)
    seen = seen / (seen + VISIBLE_TEXTURE)
    background = fit_background(flow, seen)
    if exact:
        fitted = functional.pad(torch.cat([background[:, :2], background[:, 2:].expm1()], 1), (0, 1))
        border = border_mask(_grid(flow), EXACT_SHARES).expand_as(seen)
        fitted = sharpened(clear, then, fitted, _grid(flow), border, turns=False)
        background = torch.cat([fitted[:, :2], fitted[:, 2:3].clamp(-0.5, 0.5).log1p()], 1)
    region, centre = subject_region(flow, seen, background)
    subject = fit_subject(flow, region, centre)
    if exact:
        subject = sharpened(clear, then, subject, _grid(flow) - centre, region, turns=True)
    return Transitions(
        background=background,
        subject=_as_logarithm(subject),
        degree=flow_degree(flow)[:, None],
        flicker=255 * warp_error(first, second, flow)[:, None],
    )


def flow_degree(flow: Tensor) -> Tensor:
    """Mean magnitude [N] of flow [N, 2, H, W] in pixels without the largest 1 %, which outliers would dominate."""
    magnitude = flow.norm(dim=1).flatten(1)
    limit = magnitude.kthvalue(max(1, round(0.99 * magnitude.shape[1])), 1, keepdim=True).values
    result: Tensor = magnitude.clamp(max=limit).mean(1)
    return result


def fit_background(flow: Tensor, seen: Tensor) -> Tensor:
    """(x, y, log magnification about the centre) [N, 3] of the border of flow [N, 2, H, W]; seen: weights [N, 1, H, W].

    Iteratively reweighted least squares from the weighted median, robust to falling snow and to a subject that reaches
    into the border. A border without texture is taken to be still.
    """
    grid = _grid(flow)
    base = seen * border_mask(grid)
    fitted = functional.pad(weighted_median(flow, base), (0, 1))
    for step in range(FIT_ITERATIONS):
        rest = (flow - background_flow(fitted, grid)).square().sum(1, keepdim=True)
        scale = ROBUST_PX * 2.0 ** max(0, 2 - step)
        fitted = _solve_zoom(flow, grid, base / (1 + rest / scale**2).square())
    return torch.cat([fitted[:, :2], torch.log1p(fitted[:, 2:].clamp(-0.5, 0.5))], 1)


def border_mask(grid: Tensor, shares: tuple[float, float] = BORDER_SHARES) -> Tensor:
    """[1, 1, H, W] float: 1 in the border."""
    inwards = 0.5 - (grid / grid.shape[-1]).abs().amax(1, keepdim=True)
    return ((inwards > shares[0]) & (inwards < shares[1])).to(grid.dtype)


def weighted_median(flow: Tensor, weight: Tensor) -> Tensor:
    """Of each component of flow [N, 2, H, W]: [N, 2]. weight: [N, 1, H, W]."""
    values, order = flow.flatten(2).sort(2)
    shares = weight.flatten(2).expand_as(values).gather(2, order).cumsum(2)
    middle = (shares < shares[..., -1:] / 2).sum(2, keepdim=True).clamp(max=values.shape[2] - 1)
    return values.gather(2, middle)[..., 0]


def background_flow(fitted: Tensor, grid: Tensor) -> Tensor:
    """[N, 2, H, W] of (x, y, magnification - 1) [N, 3]."""
    return fitted[:, :2, None, None] + fitted[:, 2, None, None, None] * grid


def subject_region(flow: Tensor, seen: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """(weights [N, 1, H, W], their centre [N, 2, 1, 1]) of what moves unlike the background, else of the picture's
    centre.
    """
    grid = _grid(flow)
    size = flow.shape[-1]
    other = flow - background_flow(torch.cat([background[:, :2], torch.expm1(background[:, 2:])], 1), grid)
    unlike = other.square().sum(1, keepdim=True)
    middle = torch.exp(-0.5 * (grid / (0.22 * size)).square().sum(1, keepdim=True))
    base = seen * middle * (0.02 + unlike / (unlike + 0.15))
    total = base.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return base, (grid * base).sum((2, 3), keepdim=True) / total


def fit_subject(flow: Tensor, base: Tensor, centre: Tensor) -> Tensor:
    """(x, y, magnification - 1, turn) [N, 4] of a region's flow about its centre; base, centre: of `subject_region`."""
    grid = _grid(flow)
    robust = torch.ones_like(base)
    fitted = flow.new_zeros(flow.shape[0], 4)
    for step in range(FIT_ITERATIONS):
        fitted = _solve_similarity(flow, grid - centre, base * robust)
        rest = (flow - moved_by(fitted, grid - centre)).square().sum(1, keepdim=True)
        scale = ROBUST_PX * 2.0 ** max(0, 2 - step)
        robust = 1 / (1 + rest / scale**2)
    return fitted


def _as_logarithm(fitted: Tensor) -> Tensor:
    """(x, y, magnification - 1, turn) [N, 4] with the log of the magnification and the angle of the turn."""
    grow, turn = 1 + fitted[:, 2], fitted[:, 3]
    size_change = 0.5 * (grow.square() + turn.square()).clamp(min=1e-2).log()
    return torch.stack([fitted[:, 0], fitted[:, 1], size_change, torch.atan2(turn, grow)], 1)


def _grid(flow: Tensor) -> Tensor:
    """[1, 2, H, W]: x and y of each pixel from the centre."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + 0.5 - width / 2
    y = torch.arange(height, dtype=flow.dtype, device=flow.device) + 0.5 - height / 2
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]


def _solve_zoom(flow: Tensor, grid: Tensor, weight: Tensor) -> Tensor:
    """Weighted least squares of flow = (x, y) + z grid: [N, 3]. Slightly regularised towards no motion."""
    count = flow.shape[-1] * flow.shape[-2]
    w = weight.sum((1, 2, 3)) + 1e-3 * count
    wg = (weight * grid).sum((2, 3))
    wgg = (weight * grid.square()).sum((1, 2, 3)) + 1e-3 * count * (flow.shape[-1] / 4) ** 2
    wf = (weight * flow).sum((2, 3))
    wgf = (weight * grid * flow).sum((1, 2, 3))
    zoom = (wgf - (wg * wf).sum(1) / w) / (wgg - wg.square().sum(1) / w)
    return torch.cat([(wf - zoom[:, None] * wg) / w[:, None], zoom[:, None]], 1)


def _solve_similarity(flow: Tensor, grid: Tensor, weight: Tensor) -> Tensor:
    """Weighted least squares of flow = (x, y) + a grid + b turned(grid): [N, 4]."""
    count = flow.shape[-1] * flow.shape[-2]
    w = weight.sum((1, 2, 3)) + 3e-4 * count
    wg, wf = (weight * grid).sum((2, 3)), (weight * flow).sum((2, 3))
    turned = torch.stack([-grid[:, 1], grid[:, 0]], 1)
    wt = (weight * turned).sum((2, 3))
    spread = (weight * grid.square()).sum((1, 2, 3)) + 3e-4 * count * (flow.shape[-1] / 8) ** 2
    spread = spread - wg.square().sum(1) / w
    grow = ((weight * grid * flow).sum((1, 2, 3)) - (wg * wf).sum(1) / w) / spread
    turn = ((weight * turned * flow).sum((1, 2, 3)) - (wt * wf).sum(1) / w) / spread
    move = (wf - grow[:, None] * wg - turn[:, None] * wt) / w[:, None]
    return torch.cat([move, grow[:, None], turn[:, None]], 1)
