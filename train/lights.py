"""Owns the four lights: day, sunset, night, snowfall. Whole-picture gradings that also work on photographs.

Independent of places and subjects. Without a generator a light is a deterministic function of the picture (its sun,
moon and flakes are at fixed positions); with one, those positions vary from picture to picture. The frames of a clip
share one draw of these numbers, and only the flakes move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from .drawing import smoothstep

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601 luma weights."""

Tables = Sequence[Tensor]
"""The random numbers of a light for B pictures, each [B, ...] uniform in 0..1."""
FAR_ROWS, NEAR_ROWS = 13, 8
"""Rows of cells, each with one flake, in the two layers of falling snow."""
FAR_FALL, NEAR_FALL = 0.16, 0.24
"""Speed of the flakes of both layers, in frame heights a second."""


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


def day(img: Tensor, tables: Tables, time_s: Tensor) -> Tensor:
    """The unchanged picture."""
    return img


def sunset(img: Tensor, tables: Tables, time_s: Tensor) -> Tensor:
    """Warm grade with violet shadows, and the glow of a low sun at one side."""
    x, y = axes(img)
    place = tables[0]
    cx, cy = 0.12 + 0.16 * place[:, :1], 0.34 + 0.12 * place[:, 1:]
    graded = img * rgb(img, 1.02, 0.70, 0.50) + (1 - luminance(img)) * rgb(img, 0.10, 0.015, 0.09)
    graded = graded * (1.04 - 0.26 * smoothstep(0.45, 1.0, y))
    distance = (((x - cx) / 0.62) ** 2 + ((y - cy) / 0.42) ** 2).clamp(min=1e-6).sqrt()
    glow = 0.55 * torch.exp(-(distance**2)) + 0.30 * torch.exp(-((distance * 4.5) ** 2))
    band = 0.16 * torch.exp(-(((y - cy) / 0.22) ** 2))
    return 1 - (1 - graded.clamp(0, 1)) * (1 - ((glow + band) * rgb(img, 1.0, 0.52, 0.16)).clamp(0, 1))


def night(img: Tensor, tables: Tables, time_s: Tensor) -> Tensor:
    """Dark blue grade with a pool of moonlight from above; saturated yellow and bright parts (lamps, windows, lava)
    stay lit.
    """
    x, y = axes(img)
    place = tables[0]
    luma = luminance(img)
    cool = (0.55 * img + 0.45 * luma).clamp(0, 1) ** 1.2
    distance = (((x - 0.42 - 0.16 * place) / 0.62) ** 2 + ((y - 0.30) / 0.72) ** 2).clamp(min=1e-6).sqrt()
    moonlight = 0.50 + 0.50 * torch.exp(-(distance**2))
    dark = cool * rgb(img, 0.42, 0.54, 0.86) * moonlight * 1.15 + rgb(img, 0.012, 0.022, 0.065)
    lamp = smoothstep(0.36, 0.55, img[:, 0:1] - img[:, 2:3]) * smoothstep(0.82, 0.95, img[:, 0:1])
    lamp = lamp * smoothstep(0.55, 0.80, img[:, 1:2])
    return dark + 0.55 * lamp * (img - dark)


def _flakes(img: Tensor, table: Tensor, fallen: Tensor, radius: tuple[float, float]) -> Tensor:
    """Coverage [B, 1, H, W] of soft flakes, one per cell of a grid given by table [B, 4, rows, columns].

    fallen: [B, 1, 1], how far the endless grid has moved down, in frame heights. radius: in frame heights.
    """
    height, width = img.shape[-2:]
    rows, columns = table.shape[-2:]
    v = functional.interpolate(table, size=(rows, width), mode="nearest")
    x, y = axes(img)
    line = torch.arange(height, device=img.device, dtype=img.dtype) - fallen[:, 0] * height
    row = (line * (rows / height)).floor().long() % rows
    v = v.gather(2, row.view(-1, 1, height, 1).expand(v.shape[0], 4, -1, width))
    size = radius[0] + (radius[1] - radius[0]) * v[:, 2:3]
    room = (1 - 2.6 * size * rows).clamp(min=0)
    du = (x * columns) % 1 - 0.5 - (v[:, 0:1] - 0.5) * room
    dv = ((y - fallen.unsqueeze(1)) * rows) % 1 - 0.5 - (v[:, 1:2] - 0.5) * room
    distance = (du * du + dv * dv).sqrt() / rows
    return (1 - smoothstep(0.35, 1.3, distance / size)) * (v[:, 3:4] < 0.72)


def snowfall(img: Tensor, tables: Tables, time_s: Tensor) -> Tensor:
    """Cool, hazy and desaturated, with soft white flakes of 2 to 5 px across at 192 px, and a white drift at the
    bottom.
    """
    x, y = axes(img)
    luma = luminance(img)
    pale = (0.50 * img + 0.50 * luma) * rgb(img, 0.80, 0.87, 0.96) * 0.80 + rgb(img, 0.13, 0.15, 0.18)
    white = rgb(img, 0.98, 0.99, 1.0)
    place, far, near = tables
    drift = 0.955 - 0.018 * torch.sin(x * 7 + 6.28 * place[:, :1]) - 0.012 * torch.sin(x * 15 + 6.28 * place[:, 1:])
    pale = pale + smoothstep(-0.006, 0.012, y - drift) * 0.92 * (white * 0.96 - pale)
    for cells, speed, radius, opacity in (
        (far, FAR_FALL, (0.006, 0.009), 0.75),
        (near, NEAR_FALL, (0.010, 0.015), 0.95),
    ):
        fallen = (speed * time_s).view(-1, 1, 1)
        pale = pale + opacity * _flakes(img, cells, fallen, radius) * (white - pale)
    return pale.clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """How one light is painted.

    paint: (pictures [B, 3, H, W] in 0..1, tables, time in seconds [B] or [1]) to pictures of the same shape, which may
    exceed 0..1. shapes: the tables' shapes after B, for pictures of a height and width.
    """

    paint: Callable[[Tensor, Tables, Tensor], Tensor]
    shapes: Callable[[int, int], tuple[tuple[int, ...], ...]]


def _cells(rows: int, height: int, width: int) -> tuple[int, int, int]:
    return 4, rows, max(1, round(rows * width / height))


LIGHT_PAINTERS: tuple[Light, ...] = (
    Light(paint=day, shapes=lambda height, width: ()),
    Light(paint=sunset, shapes=lambda height, width: ((2, 1, 1),)),
    Light(paint=night, shapes=lambda height, width: ((1, 1, 1),)),
    Light(
        paint=snowfall,
        shapes=lambda height, width: ((2, 1, 1), _cells(FAR_ROWS, height, width), _cells(NEAR_ROWS, height, width)),
    ),
)
"""In the order of vocabulary_world.LIGHTS."""


def draw_tables(img: Tensor, generator: torch.Generator | None) -> tuple[tuple[Tensor, ...], ...]:
    """The tables of each of LIGHT_PAINTERS for pictures img [B, 3, H, W], of which only the shape matters."""
    return tuple(_light_tables(img, light, generator) for light in LIGHT_PAINTERS)


def _light_tables(img: Tensor, light: Light, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    height, width = img.shape[-2:]
    return tuple(_table(img, generator, *shape) for shape in light.shapes(height, width))


def apply_lights(img: Tensor, light: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Light each picture of img [B, 3, H, W] (0..1) with its own light [B] (int64 index into LIGHTS); the same
    shape, 0..1.
    """
    result = img.clone()
    start = torch.zeros(1, device=img.device, dtype=img.dtype)
    for index, painter in enumerate(LIGHT_PAINTERS):
        rows = (light == index).nonzero().flatten()
        if rows.numel():
            part = img.index_select(0, rows)
            lit = painter.paint(part, _light_tables(part, painter, generator), start)
            result.index_copy_(0, rows, lit.clamp(0, 1))
    return result
