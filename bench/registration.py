"""Owns the refinement of a fitted similarity motion by direct image registration.

Robust Gauss-Newton on the difference of one picture and the other warped back (Odobez and Bouthemy 1995): dense flow is
biased to 0 where there is little texture; the motion of a whole region need not be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.flow import gaussian_blur, inside, slopes, warp

STEPS = 6
ROBUST_LEVEL = 0.04
"""Colour difference (root of the sum of squares, 0..1) at which a pixel's weight is a quarter."""
SMOOTH_PX = 0.8


def moved_by(fitted: Tensor, place: Tensor) -> Tensor:
    """Flow [N, 2, H, W] of (x, y, grow, turn) [N, 4] at positions [N, 2, H, W] relative to the region's centre."""
    x, y = place.chunk(2, 1)
    grow, turn = fitted[:, 2, None, None, None], fitted[:, 3, None, None, None]
    return fitted[:, :2, None, None] + torch.cat([grow * x - turn * y, turn * x + grow * y], 1)


def sharpened(first: Tensor, second: Tensor, fitted: Tensor, place: Tensor, weight: Tensor, *, turns: bool) -> Tensor:
    """(x, y, grow, turn) [N, 4] near `fitted` that best takes `first` to `second` [N, C, H, W] where `weight` is.

    place: [N or 1, 2, H, W] relative to the region's centre; weight: [N, 1, H, W]; turns: False keeps the turn fixed.
    """
    first, second = gaussian_blur(first, SMOOTH_PX), gaussian_blur(second, SMOOTH_PX)
    place = place.expand(first.shape[0], -1, -1, -1)
    size = first.shape[-1] / 4  # so that all unknowns are pixels
    across, down = (place / size).chunk(2, 1)
    own = slopes(first)
    unknowns = 4 if turns else 3
    for _ in range(STEPS):
        flow = moved_by(fitted, place)
        warped = warp(second, flow)
        there = slopes(warped)
        x, y = (own[0] + there[0]) / 2, (own[1] + there[1]) / 2
        difference = warped - first
        level = difference.square().sum(1, keepdim=True) / ROBUST_LEVEL**2
        robust = weight * inside(flow) / (1 + level).square()
        columns = torch.stack([x, y, x * across + y * down, y * across - x * down][:unknowns], 1)  # [N, k, C, H, W]
        weighted = (columns * robust[:, None]).flatten(2)
        normal = weighted @ columns.flatten(2).transpose(1, 2)
        ridge = 1e-4 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        normal = normal + ridge[:, None, None] * torch.eye(unknowns, device=first.device)
        step = -torch.linalg.solve(normal, weighted @ difference.flatten(1)[..., None])[..., 0].clamp(-1, 1)
        scale = step.new_tensor([1, 1, 1 / size, 1 / size])[:unknowns]
        fitted = fitted + torch.nn.functional.pad(step * scale, (0, 4 - unknowns))
    return fitted
