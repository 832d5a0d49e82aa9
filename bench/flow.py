"""Owns dense optical flow between pictures, and warping by it.

Pyramidal iterative Lucas-Kanade with Gaussian windows (Lucas and Kanade 1981; Bouguet 2000), colour channels combined,
on the device of the pictures.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """levels: of the pyramid, each half as large. iterations: warps per level. window_sigma_px: of the Gaussian window,
    at every level. smooth_sigma_px: of the blur before the gradients. damping: added to the structure tensor, in
    squared picture values (0..1) per squared pixel: gradients below its root count as flat. diffusion_sigma_px: radius
    over which, after each step, flat areas take over the flow of textured ones nearby.
    """

    levels: int = 4
    iterations: int = 3
    window_sigma_px: float = 2.2
    smooth_sigma_px: float = 0.7
    damping: float = 1e-5
    diffusion_sigma_px: float = 2.0

    def __post_init__(self) -> None:
        if self.levels < 1 or self.iterations < 1:
            raise ValueError(f"levels={self.levels}, iterations={self.iterations}: each must be at least 1")
        if min(self.window_sigma_px, self.smooth_sigma_px, self.damping, self.diffusion_sigma_px) <= 0:
            raise ValueError("the sigmas and damping must be above 0")


DEFAULT_FLOW = FlowSettings()


def optical_flow(first: Tensor, second: Tensor, settings: FlowSettings = DEFAULT_FLOW) -> Tensor:
    """Flow [N, 2, H, W] in pixels, x right and y down: pixel p of `first` is at p + flow(p) in `second`.

    first, second: [N, C, H, W] in 0..1, at least 16 pixels high and wide. Raises ValueError for other shapes.
    """
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"flow needs two batches [N, C, H, W] of one shape, got {first.shape} and {second.shape}")
    if min(first.shape[-2:]) < 16:
        raise ValueError(f"pictures of {first.shape[-2:]} are too small for flow: give at least 16 pixels")
    before, after = pyramid(first, settings), pyramid(second, settings)
    flow = torch.zeros(first.shape[0], 2, *before[-1].shape[-2:], dtype=first.dtype, device=first.device)
    for a, b in zip(reversed(before), reversed(after), strict=True):
        if flow.shape[-2:] != a.shape[-2:]:
            ratio = a.shape[-1] / flow.shape[-1]
            flow = ratio * functional.interpolate(flow, a.shape[-2:], mode="bilinear", align_corners=False)
        flow = _refined(a, b, flow, settings)
    return flow


def pyramid(pictures: Tensor, settings: FlowSettings) -> list[Tensor]:
    """Blurred pictures, each half as large as the one before, none smaller than 8 pixels."""
    levels = [gaussian_blur(pictures, settings.smooth_sigma_px)]
    while len(levels) < settings.levels and min(levels[-1].shape[-2:]) >= 16:
        levels.append(functional.avg_pool2d(gaussian_blur(levels[-1], 0.7), 2))
    return levels


def _refined(first: Tensor, second: Tensor, flow: Tensor, settings: FlowSettings) -> Tensor:
    """`flow` after the settings' iterations: each step solves (A + damping I) d = -sum(gradient (warped - first)).

    Gradients are the mean of both pictures' (second-order accurate); pixels whose flow leaves the picture are ignored.
    """
    fixed = slopes(first)
    for _ in range(settings.iterations):
        warped = warp(second, flow)
        there_x, there_y = slopes(warped)
        visible = inside(flow).to(first.dtype)
        x, y = (fixed[0] + there_x) / 2 * visible, (fixed[1] + there_y) / 2 * visible
        difference = warped - first
        products = [(a * b).sum(1, keepdim=True) for a, b in ((x, x), (x, y), (y, y), (x, difference), (y, difference))]
        xx, xy, yy, bx, by = gaussian_blur(torch.cat(products, 1), settings.window_sigma_px).chunk(5, 1)
        xx, yy = xx + settings.damping, yy + settings.damping
        determinant = xx * yy - xy * xy
        step = torch.cat([xy * by - yy * bx, xy * bx - xx * by], 1) / determinant
        weight = determinant / (xx + yy)
        spread = gaussian_blur(torch.cat([(flow + step.clamp(-1, 1)) * weight, weight], 1), settings.diffusion_sigma_px)
        flow = spread[:, :2] / spread[:, 2:]
    return flow


def slopes(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and down, borders repeated: each [N, C, H, W]."""
    padded = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return x, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def texture(pictures: Tensor, settings: FlowSettings = DEFAULT_FLOW) -> Tensor:
    """How visible motion is, [N, 1, H, W]: the structure tensor's smaller eigenvalue (Shi and Tomasi 1994)."""
    x, y = slopes(gaussian_blur(pictures, settings.smooth_sigma_px))
    products = torch.cat([(a * b).sum(1, keepdim=True) for a, b in ((x, x), (x, y), (y, y))], 1)
    xx, xy, yy = gaussian_blur(products, settings.window_sigma_px).chunk(3, 1)
    return (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """pictures(p + flow(p)), bilinear, borders repeated: undoes the motion. pictures: [N, C, H, W]; flow: in px."""
    height, width = pictures.shape[-2:]
    grid = torch.stack(
        [
            (_line(width, flow) + flow[:, 0]) * (2 / width) - 1,
            (_line(height, flow)[:, None] + flow[:, 1]) * (2 / height) - 1,
        ],
        -1,
    )
    return functional.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def inside(flow: Tensor) -> Tensor:
    """Whether p + flow(p) is inside the picture: [N, 1, H, W] bool."""
    height, width = flow.shape[-2:]
    x, y = _line(width, flow) + flow[:, 0], _line(height, flow)[:, None] + flow[:, 1]
    return ((x >= 0) & (x <= width) & (y >= 0) & (y <= height)).unsqueeze(1)


def warp_error(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """Mean absolute difference [N] of `first` and `second` warped back by `flow`, where the flow stays inside.

    What motion does not explain, flicker: the warping error of Lai et al. 2018, without an occlusion mask.
    """
    visible = inside(flow).to(first.dtype)
    difference = (warp(second, flow) - first).abs().mean(1, keepdim=True) * visible
    return difference.sum((1, 2, 3)) / visible.sum((1, 2, 3)).clamp(min=1)


def gaussian_blur(pictures: Tensor, sigma_px: float) -> Tensor:
    """[N, C, H, W] blurred, borders repeated, by a product with a banded matrix on each side."""
    height, width = pictures.shape[-2:]
    down, across = (
        _blur_matrix(length, sigma_px).to(device=pictures.device, dtype=pictures.dtype) for length in (height, width)
    )
    return down @ pictures @ across.T


@functools.lru_cache(maxsize=64)
def _blur_matrix(length: int, sigma_px: float) -> Tensor:
    """[length, length]: row i holds the weights, truncated at 2.5 sigma, of pixel i."""
    radius = max(1, math.ceil(2.5 * sigma_px))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    columns = (torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, columns, (kernel / kernel.sum()).expand(length, -1))


def _line(length: int, like: Tensor) -> Tensor:
    """Pixel centres: 0.5, 1.5, ..."""
    return torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
