"""Owns the four lights: day, sunset, night, snowfall. Whole-picture gradings that also work on photographs.

Knows pictures only, no places or subjects. A light given no generator is a deterministic function of the picture
(its sun, moon and flakes stand at fixed positions); given one, those positions vary from picture to picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from .drawing import smoothstep

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma weights."""

Light = Callable[[Tensor, torch.Generator | None], Tensor]


def luminance(img: Tensor) -> Tensor:
    """BT.601 luma [B, 1, H, W] of an RGB picture [B, 3, H, W]."""
    weights = torch.tensor(LUMA, device=img.device, dtype=img.dtype).view(1, 3, 1, 1)
    return (img * weights).sum(1, keepdim=True)


def axes(img: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres x [1, 1, 1, W] and y [1, 1, H, 1] in 0..1."""
    height, width = img.shape[-2:]
    x = (torch.arange(width, device=img.device, dtype=img.dtype) + 0.5) / width
    y = (torch.arange(height, device=img.device, dtype=img.dtype) + 0.5) / height
    return x.view(1, 1, 1, width), y.view(1, 1, height, 1)


def rgb(img: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A colour [1, 3, 1, 1] on the device of `img`."""
    return torch.tensor([red, green, blue], device=img.device, dtype=img.dtype).view(1, 3, 1, 1)


def _table(img: Tensor, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Uniform numbers [B, *shape]: from the generator, or one fixed table for all pictures."""
    if generator is not None:
        return torch.rand(img.shape[0], *shape, generator=generator, device=img.device).to(img.dtype)
    fixed = torch.rand(1, *shape, generator=torch.Generator().manual_seed(7))
    return fixed.to(img.device, img.dtype).expand(img.shape[0], *shape)


def day(img: Tensor, generator: torch.Generator | None) -> Tensor:
    """The picture as it is."""
    return img


def sunset(img: Tensor, generator: torch.Generator | None) -> Tensor:
    """Warm grade with violet shadows, and the glow of a low sun at one side."""
    x, y = axes(img)
    place = _table(img, generator, 2, 1, 1)
    cx, cy = 0.12 + 0.16 * place[:, :1], 0.34 + 0.12 * place[:, 1:]
    graded = img * rgb(img, 1.02, 0.70, 0.50) + (1 - luminance(img)) * rgb(img, 0.10, 0.015, 0.09)
    graded = graded * (1.04 - 0.26 * smoothstep(0.45, 1.0, y))
    distance = (((x - cx) / 0.62) ** 2 + ((y - cy) / 0.42) ** 2).clamp(min=1e-6).sqrt()
    glow = 0.55 * torch.exp(-(distance**2)) + 0.30 * torch.exp(-((distance * 4.5) ** 2))
    band = 0.16 * torch.exp(-(((y - cy) / 0.22) ** 2))
    return 1 - (1 - graded.clamp(0, 1)) * (1 - ((glow + band) * rgb(img, 1.0, 0.52, 0.16)).clamp(0, 1))


def night(img: Tensor, generator: torch.Generator | None) -> Tensor:
    """Dark blue grade with a pool of moonlight from above; strongly yellow and bright parts (lamps, windows, lava)
    stay lit.
    """
    x, y = axes(img)
    place = _table(img, generator, 1, 1, 1)
    luma = luminance(img)
    cool = (0.55 * img + 0.45 * luma).clamp(0, 1) ** 1.2
    distance = (((x - 0.42 - 0.16 * place) / 0.62) ** 2 + ((y - 0.30) / 0.72) ** 2).clamp(min=1e-6).sqrt()
    moonlight = 0.50 + 0.50 * torch.exp(-(distance**2))
    dark = cool * rgb(img, 0.42, 0.54, 0.86) * moonlight * 1.15 + rgb(img, 0.012, 0.022, 0.065)
    lamp = smoothstep(0.36, 0.55, img[:, 0:1] - img[:, 2:3]) * smoothstep(0.82, 0.95, img[:, 0:1])
    lamp = lamp * smoothstep(0.55, 0.80, img[:, 1:2])
    return dark + 0.55 * lamp * (img - dark)


def _flakes(img: Tensor, generator: torch.Generator | None, rows: int, radius: tuple[float, float]) -> Tensor:
    """Coverage [B, 1, H, W] of soft flakes, one for each cell of a grid of `rows` rows; `radius` in frame heights."""
    height, width = img.shape[-2:]
    columns = max(1, round(rows * width / height))
    v = functional.interpolate(_table(img, generator, 4, rows, columns), size=(height, width), mode="nearest")
    x, y = axes(img)
    size = radius[0] + (radius[1] - radius[0]) * v[:, 2:3]
    room = (1 - 2.6 * size * rows).clamp(min=0)
    du = (x * columns) % 1 - 0.5 - (v[:, 0:1] - 0.5) * room
    dv = (y * rows) % 1 - 0.5 - (v[:, 1:2] - 0.5) * room
    distance = (du * du + dv * dv).sqrt() / rows
    return (1 - smoothstep(0.35, 1.3, distance / size)) * (v[:, 3:4] < 0.72)


def snowfall(img: Tensor, generator: torch.Generator | None) -> Tensor:
    """Cool, hazy and desaturated, with soft white flakes of 2 to 5 px across at 192 px, and a white drift at the
    bottom.
    """
    x, y = axes(img)
    luma = luminance(img)
    pale = (0.50 * img + 0.50 * luma) * rgb(img, 0.80, 0.87, 0.96) * 0.80 + rgb(img, 0.13, 0.15, 0.18)
    white = rgb(img, 0.98, 0.99, 1.0)
    place = _table(img, generator, 2, 1, 1)
    drift = 0.955 - 0.018 * torch.sin(x * 7 + 6.28 * place[:, :1]) - 0.012 * torch.sin(x * 15 + 6.28 * place[:, 1:])
    pale = pale + smoothstep(-0.006, 0.012, y - drift) * 0.92 * (white * 0.96 - pale)
    for rows, radius, opacity in ((13, (0.006, 0.009), 0.75), (8, (0.010, 0.015), 0.95)):
        pale = pale + opacity * _flakes(img, generator, rows, radius) * (white - pale)
    return pale.clamp(0, 1)


LIGHT_PAINTERS: tuple[Light, ...] = (day, sunset, night, snowfall)
"""In the order of vocabulary_world.LIGHTS."""


def apply_lights(img: Tensor, light: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Light each picture of img [B, 3, H, W] (0..1) with its own light [B] (int64 index into LIGHTS); the same
    shape, 0..1.
    """
    result = img.clone()
    for index, painter in enumerate(LIGHT_PAINTERS):
        rows = (light == index).nonzero().flatten()
        if rows.numel():
            result.index_copy_(0, rows, painter(img.index_select(0, rows), generator).clamp(0, 1))
    return result
