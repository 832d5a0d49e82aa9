"""Owns the drawing primitives of the procedural world: a batched canvas with distance-field shapes and smooth
edges.

Independent of places, styles and subjects. Coordinates run from 0 to 1 over the frame, y downwards. Every per-picture
parameter is a tensor [n, 1, 1, 1] (a scalar per picture) or [n, 3, 1, 1] (a colour).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

Scalar = Tensor | float


class Canvas:
    """A batch of n pictures being drawn, with all random numbers from one generator.

    `picture` is [n, 3, size, size] in 0..1; `x` is [1, 1, 1, size], `y` is [1, 1, size, 1], both pixel centres in 0..1.
    """

    def __init__(self, n: int, size: int, generator: torch.Generator, device: torch.device) -> None:
        line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
        self.n, self.size, self.generator, self.device = n, size, generator, device
        self.x = line.view(1, 1, 1, size)
        self.y = line.view(1, 1, size, 1)
        self.picture = torch.zeros(n, 3, size, size, device=device)

    def rand(self, low: float, high: float) -> Tensor:
        """Uniform scalar of each picture, [n, 1, 1, 1]."""
        return low + (high - low) * torch.rand(self.n, 1, 1, 1, generator=self.generator, device=self.device)

    def table(self, *shape: int) -> Tensor:
        """Uniform 0..1 table of each picture, [n, *shape]."""
        return torch.rand(self.n, *shape, generator=self.generator, device=self.device)

    def colour(self, red: float, green: float, blue: float, spread: float = 0.05) -> Tensor:
        """A colour [n, 3, 1, 1] near (red, green, blue): each channel +-spread, common brightness +-5 %."""
        base = torch.tensor([red, green, blue], device=self.device).view(1, 3, 1, 1)
        noise = torch.rand(self.n, 3, 1, 1, generator=self.generator, device=self.device) * 2 - 1
        return ((base + noise * spread) * self.rand(0.95, 1.05)).clamp(0, 1)

    def choose(self, *colours: tuple[float, float, float]) -> Tensor:
        """One of the colours for each picture, [n, 3, 1, 1]."""
        palette = torch.tensor(colours, device=self.device)
        index = torch.randint(len(colours), (self.n,), generator=self.generator, device=self.device)
        return palette[index].view(self.n, 3, 1, 1)

    def fill(self, distance: Tensor, blur_px: float = 1.4) -> Tensor:
        """Coverage 0..1 of a shape given its signed distance (frame units, negative inside), edge `blur_px` wide at
        192 px.
        """
        return (0.5 - distance * (192.0 / blur_px)).clamp(0, 1)

    def gradient(self, top: Tensor, bottom: Tensor, start: Scalar = 0.0, end: Scalar = 1.0) -> None:
        """Fill the whole picture with a vertical blend that runs from y = start to y = end."""
        t = smoothstep(start, end, self.y)
        self.picture = (top + (bottom - top) * t).expand(self.n, 3, self.size, self.size)

    def paint(self, mask: Tensor, colour: Tensor) -> None:
        """Blend in `colour` (broadcastable to the picture) by `mask` (0..1)."""
        self.picture = self.picture + mask * (colour - self.picture)

    def shape(self, distance: Tensor, colour: Tensor, blur_px: float = 1.4) -> None:
        """Paint a shape given by its signed distance."""
        self.paint(self.fill(distance, blur_px), colour)

    def light(self, mask: Tensor, colour: Tensor) -> None:
        """Add `colour` as light: screen blending, never above 1."""
        self.picture = 1 - (1 - self.picture) * (1 - (mask * colour).clamp(0, 1))

    def circle(self, cx: Scalar, cy: Scalar, radius: Scalar) -> Tensor:
        """Signed distance to a disc."""
        return ((self.x - cx) ** 2 + (self.y - cy) ** 2).sqrt() - radius

    def ellipse(self, cx: Scalar, cy: Scalar, rx: Scalar, ry: Scalar) -> Tensor:
        """Approximate signed distance to an axis-aligned ellipse (scaled by its smaller radius)."""
        smaller = ry if not isinstance(rx, Tensor) and not isinstance(ry, Tensor) and ry < rx else rx
        return ((((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2).sqrt() - 1) * smaller

    def box(self, x0: Scalar, y0: Scalar, x1: Scalar, y1: Scalar, radius: float = 0.0) -> Tensor:
        """Signed distance (Chebyshev outside corners) to a box with rounded corners."""
        dx = torch.maximum(x0 - self.x, self.x - x1) + radius
        dy = torch.maximum(y0 - self.y, self.y - y1) + radius
        if radius == 0.0:
            return torch.maximum(dx, dy)
        return (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt() + torch.maximum(dx, dy).clamp(max=0) - radius

    def segment(self, ax: Scalar, ay: Scalar, bx: Scalar, by: Scalar, radius: Scalar) -> Tensor:
        """Signed distance to a capsule from (ax, ay) to (bx, by)."""
        ux, uy = bx - ax, by - ay
        px, py = self.x - ax, self.y - ay
        t = ((px * ux + py * uy) / (ux * ux + uy * uy + 1e-9)).clamp(0, 1)
        return ((px - t * ux) ** 2 + (py - t * uy) ** 2).sqrt() - radius

    def below(self, curve: Tensor, slope: float = 0.0) -> Tensor:
        """Signed distance to everything below a curve y(x); `slope` is its typical slope, for an even edge."""
        return (curve - self.y) / math.sqrt(1 + slope * slope)

    def waves(self, low: float, high: float, phase: Tensor | None = None) -> Tensor:
        """A sine over x, -1..1, with a random frequency (periods over the frame) and phase."""
        start = self.rand(0, 2 * math.pi) if phase is None else phase
        return torch.sin(self.x * self.rand(low, high) * (2 * math.pi) + start)

    def cells(self, count: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
        """A grid of count x count cells: random numbers [n, channels, H, W] constant in each cell, and the offsets from
        its centre (-0.5..0.5)."""
        table = self.table(channels, count, count)
        values = functional.interpolate(table, size=(self.size, self.size), mode="nearest")
        return values, (self.x * count) % 1 - 0.5, (self.y * count) % 1 - 0.5

    def dots(self, count: int, radius: tuple[float, float], presence: float) -> Tensor:
        """Signed distance to soft dots, at most one in each cell of a grid; `radius` is a range in frame units."""
        v, u, w = self.cells(count, 4)
        size = radius[0] + (radius[1] - radius[0]) * v[:, 2:3]
        room = (0.5 - size * count).clamp(min=0) * 2
        distance = ((u - (v[:, 0:1] - 0.5) * room) ** 2 + (w - (v[:, 1:2] - 0.5) * room) ** 2).sqrt() / count - size
        return torch.where(v[:, 3:4] < presence, distance, torch.ones_like(distance))

    def cloud(self, cx: Tensor, cy: Tensor, scale: Tensor, colour: Tensor) -> None:
        """A flat-bottomed cloud of three discs."""
        d = torch.minimum(self.circle(cx, cy, scale), self.circle(cx - 1.1 * scale, cy + 0.3 * scale, 0.7 * scale))
        d = torch.minimum(d, self.circle(cx + 1.1 * scale, cy + 0.25 * scale, 0.75 * scale))
        self.shape(torch.maximum(d, self.y - cy - 0.55 * scale), colour, 2.5)

    def mirrored(self) -> Tensor:
        """The finished picture [n, 3, size, size] in 0..1, each one flipped left to right with probability 1/2."""
        flip = torch.rand(self.n, 1, 1, 1, generator=self.generator, device=self.device) < 0.5
        return torch.where(flip, self.picture.flip(-1), self.picture).clamp(0, 1)


def smoothstep(start: Scalar, end: Scalar, value: Tensor) -> Tensor:
    """Hermite step from 0 at `start` to 1 at `end`."""
    t = ((value - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def triangle(value: Tensor) -> Tensor:
    """Triangle wave with period 1, 0 at whole numbers and 1 half-way."""
    return 1 - (2 * (value % 1) - 1).abs()


def lowest(*distances: Tensor) -> Tensor:
    """Union of shapes."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.minimum(result, other)
    return result
