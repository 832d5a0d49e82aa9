"""Owns the registry of places, and six of them: studio, city, space, underwater, room, stage.

A place is a painter on a `Canvas`. Its distinctive features are at the borders of the frame, since a subject covers the
middle, and are made of shapes, so that they survive a change of light or style. Independent of subjects, lights and
styles. The outdoor places are in places_outdoor.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import places_outdoor as outdoor
from .drawing import Canvas, lowest, smoothstep


def studio(c: Canvas) -> None:
    """Plain backdrop: a pastel wall that sweeps into a lighter floor."""
    wall = c.choose((0.74, 0.80, 0.86), (0.86, 0.79, 0.74), (0.78, 0.84, 0.77), (0.82, 0.77, 0.86), (0.84, 0.84, 0.82))
    wall = (wall + c.colour(0.5, 0.5, 0.5, 0.06) - 0.5).clamp(0, 1)
    c.gradient(wall, wall * 0.4 + 0.58, c.rand(0.5, 0.62), c.rand(0.72, 0.85))
    c.paint(0.25 * smoothstep(0.35, 0.85, c.circle(0.5, 0.42, 0.0)), wall * 0.45)


def city(c: Canvas) -> None:
    """Two rows of tower blocks, tall at the borders, with a grid of lit windows above a pavement."""
    c.gradient(c.colour(0.42, 0.62, 0.86), c.colour(0.95, 0.86, 0.76), 0.0, 0.7)
    far = c.table(11)[:, None, None, :]
    column = (c.x * 11).floor().long().clamp(max=10)
    c.shape(c.below(0.22 + 0.3 * far[..., column[0, 0, 0]]), c.colour(0.60, 0.68, 0.80))
    towers, rows = 7, 13
    shift = c.rand(0.0, 0.06)
    position = ((c.x + shift) / 1.06 * towers).clamp(0, towers - 1e-3)
    index = position.floor().long().expand(c.n, 1, 1, c.size)
    edge = (index.float() / (towers - 1) * 2 - 1).abs()
    heights = c.table(towers).view(c.n, 1, 1, towers).gather(3, index)
    top = 0.46 - 0.34 * edge**1.5 + 0.16 * (heights - 0.5)
    u = position % 1
    tint = c.table(3, towers)[:, :, None, :].gather(3, index.expand(c.n, 3, 1, c.size))
    body = c.colour(0.30, 0.36, 0.50) * (0.75 + 0.55 * heights) + 0.10 * (tint - 0.5)
    side = torch.maximum(0.03 - u, u - 0.97) / towers
    c.shape(torch.maximum(c.below(top), side), body)
    c.shape(torch.maximum((u - 0.5).abs() / towers - 0.005, top - 0.07 - c.y).maximum(c.y - top), body)
    wu, wv = (u * 3 - 0.2) / 2.6 * 3, (c.y - top) * rows / 0.8
    lit = c.table(rows + 8, towers * 3)
    across = (index * 3 + (u * 3).floor().long().clamp(0, 2)).expand(c.n, 1, c.size, c.size)
    down = wv.floor().long().clamp(0, rows + 7)
    on = lit.view(c.n, -1).gather(1, (down * towers * 3 + across).view(c.n, -1)).view(c.n, 1, c.size, c.size)
    window = torch.maximum(((wu % 1) - 0.5).abs() - 0.28, ((wv % 1) - 0.5).abs() - 0.27) / 22
    window = torch.maximum(window, torch.maximum(0.25 - wv, c.y - 0.79))
    c.shape(window, torch.where(on < 0.6, c.colour(1.0, 0.88, 0.42), body * 0.6))
    c.shape(c.below(torch.full_like(c.x, 0.82)), c.colour(0.58, 0.58, 0.62))
    c.shape(c.box(-1.0, 0.82, 2.0, 0.835), c.colour(0.80, 0.80, 0.82))
    c.shape(c.below(torch.full_like(c.x, 0.90)), c.colour(0.30, 0.31, 0.36))
    dash = ((c.x * 5 + shift * 20) % 1 - 0.5).abs() - 0.28
    c.shape(torch.maximum(dash / 5, (c.y - 0.95).abs() - 0.011), c.colour(0.95, 0.92, 0.75))


def space(c: Canvas) -> None:
    """Stars, a ringed planet in one upper corner, a small planet opposite, a cratered moon surface below."""
    c.gradient(c.colour(0.06, 0.05, 0.18, 0.03), c.colour(0.22, 0.12, 0.38), 0.0, 1.0)
    glow = c.circle(c.rand(0.2, 0.8), c.rand(0.3, 0.6), 0.0)
    c.light(0.5 * torch.exp(-((glow / 0.3) ** 2)), c.choose((0.5, 0.2, 0.6), (0.15, 0.4, 0.6), (0.6, 0.25, 0.35)))
    c.shape(c.dots(9, (0.006, 0.014), 0.45), c.colour(1.0, 0.97, 0.86), 2.0)
    for _ in range(3):
        sx, sy, r = c.rand(0.05, 0.95), c.rand(0.05, 0.6), c.rand(0.03, 0.05)
        spike = ((c.x - sx).abs() + 1e-4).sqrt() + ((c.y - sy).abs() + 1e-4).sqrt()
        c.shape((spike - r.sqrt()) * 0.18, c.colour(1.0, 0.98, 0.9))
    px, py, r = c.rand(0.14, 0.24), c.rand(0.15, 0.25), c.rand(0.11, 0.15)
    hue = c.choose((0.93, 0.62, 0.36), (0.90, 0.50, 0.48), (0.55, 0.72, 0.90), (0.85, 0.75, 0.50))
    tilt = c.rand(-0.5, -0.2)
    u = (c.x - px) * tilt.cos() - (c.y - py) * tilt.sin()
    v = (c.x - px) * tilt.sin() + (c.y - py) * tilt.cos()
    ring = (((u / 1.75) ** 2 + (v / 0.5) ** 2).sqrt() - r).abs() * 0.6 - 0.014
    ring_colour = c.colour(0.95, 0.86, 0.66)
    c.shape(ring, ring_colour)
    planet = c.circle(px, py, r)
    c.shape(planet, hue * (0.92 + 0.14 * torch.sin(v * 75)))
    c.paint(c.fill(planet) * smoothstep(0.3, 1.6, (u + v) / r + 0.5) * 0.6, hue * 0.25)
    c.shape(torch.maximum(ring, -v), ring_colour)
    mx, my, mr = c.rand(0.82, 0.92), c.rand(0.28, 0.5), c.rand(0.05, 0.08)
    c.shape(c.circle(mx, my, mr), c.choose((0.45, 0.80, 0.72), (0.80, 0.60, 0.85), (0.95, 0.80, 0.45)))
    c.paint(c.fill(torch.maximum(c.circle(mx, my, mr), -c.circle(mx - 0.4 * mr, my - 0.3 * mr, mr))) * 0.6, hue * 0.15)
    ground = c.circle(c.rand(0.4, 0.6), 2.0, c.rand(1.18, 1.24))
    soil = c.colour(0.66, 0.66, 0.72)
    c.shape(ground, soil * (1.1 - 0.5 * smoothstep(0.75, 1.0, c.y)))
    for left, right, low in ((0.06, 0.2, 0.9), (0.76, 0.92, 0.9), (0.35, 0.62, 0.95)):
        cx, cy, w = c.rand(left, right), c.rand(low - 0.02, low + 0.02), c.rand(0.06, 0.1)
        c.shape(c.ellipse(cx, cy, w, w * 0.34), soil * 0.62)
        c.shape(c.ellipse(cx, cy + 0.012, w * 0.86, w * 0.24), soil * 0.82)


def underwater(c: Canvas) -> None:
    """Fans of light from above, seaweed on both sides, rising bubbles and a sandy floor with coral."""
    c.gradient(c.colour(0.42, 0.84, 0.88), c.colour(0.04, 0.26, 0.46), -0.1, 0.95)
    angle = torch.atan2(c.x - c.rand(0.3, 0.7), c.y + 0.35)
    rays = torch.sin(angle * c.rand(15, 21) + c.rand(0, 6)) * (1 - smoothstep(0.25, 0.85, c.y))
    c.light(0.5 * smoothstep(-0.1, 0.5, rays), c.colour(0.75, 0.95, 0.9))
    far = 0.74 + 0.05 * c.waves(0.8, 1.4)
    c.shape(c.below(far), c.colour(0.10, 0.40, 0.52))
    floor = 0.87 + 0.025 * c.waves(0.7, 1.3)
    c.shape(c.below(floor), c.colour(0.84, 0.78, 0.56))
    for cx, cy in ((c.rand(0.26, 0.34), 0.93), (c.rand(0.68, 0.76), 0.93)):
        coral = c.choose((0.95, 0.45, 0.45), (0.95, 0.62, 0.32), (0.85, 0.45, 0.75))
        stems = [c.segment(cx, cy, cx + dx, cy - dy, 0.013) for dx, dy in ((0.0, 0.13), (-0.05, 0.09), (0.05, 0.08))]
        c.shape(lowest(*stems), coral)
    for x0, height in ((0.04, 0.62), (0.12, 0.38), (0.19, 0.22), (0.96, 0.55), (0.88, 0.42), (0.82, 0.2)):
        root, tall = c.rand(x0 - 0.02, x0 + 0.02), c.rand(height - 0.08, height + 0.08)
        up = ((0.97 - c.y) / tall).clamp(0, 1.2)
        sway = 0.03 * torch.sin(up * c.rand(7, 10) + c.rand(0, 6)) * up.sqrt()
        leaf = (c.x - root - sway).abs() - 0.026 * (1 - up).clamp(min=0).sqrt() * (1 + 0.25 * torch.sin(up * 24))
        c.shape(torch.maximum(leaf, (up - 1) * 0.1), c.colour(0.16, 0.58, 0.34, 0.09))
    for side, count in ((0.0, 4), (0.78, 4)):
        for _ in range(count):
            bx, by, r = c.rand(side + 0.03, side + 0.2), c.rand(0.06, 0.6), c.rand(0.018, 0.04)
            bubble = c.circle(bx, by, r)
            c.paint(0.35 * c.fill(bubble), c.colour(0.85, 0.98, 1.0))
            c.shape(
                lowest(bubble.abs() - 0.004, c.circle(bx - r * 0.35, by - r * 0.35, r * 0.22)), c.colour(0.93, 1.0, 1.0)
            )


def room(c: Canvas) -> None:
    """Striped wallpaper, a window with cross bars, a standing lamp, a picture, floor boards in perspective."""
    paper = c.choose((0.90, 0.80, 0.66), (0.70, 0.82, 0.78), (0.88, 0.74, 0.72), (0.76, 0.78, 0.90), (0.86, 0.86, 0.70))
    line = c.rand(0.68, 0.74)
    stripe = torch.sin(c.x * (2 * math.pi * 9) + c.rand(0, 6))
    c.picture = (paper * (0.95 + 0.06 * (stripe * 3).clamp(-1, 1))).expand(c.n, 3, c.size, c.size)
    wood = c.colour(0.66, 0.44, 0.28)
    depth = (c.y - line + 0.16).clamp(min=0.05)
    board = ((c.x - 0.5) / depth * 1.5 + c.rand(0, 1)) % 1
    gap = torch.minimum(board, 1 - board) * depth / 1.5 - 0.005
    floor = c.fill(line - c.y)
    c.paint(floor, wood * (0.85 + 0.5 * (c.y - line)))
    c.paint(floor * c.fill(gap), wood * 0.55)
    c.shape(c.box(-1.0, line - 0.045, 2.0, line), c.colour(0.97, 0.95, 0.91))
    x0, y0 = c.rand(0.05, 0.09), c.rand(0.10, 0.16)
    x1, y1 = x0 + c.rand(0.23, 0.27), y0 + c.rand(0.34, 0.40)
    frame = c.colour(0.98, 0.97, 0.94)
    c.shape(c.box(x0 - 0.03, y0 - 0.03, x1 + 0.03, y1 + 0.03), frame * 0.62)
    c.shape(c.box(x0 - 0.022, y0 - 0.022, x1 + 0.022, y1 + 0.022), frame)
    pane = c.box(x0, y0, x1, y1)
    c.shape(pane, c.colour(0.50, 0.76, 0.95))
    hill = y1 - 0.07 - 0.02 * c.waves(2, 3)
    c.shape(torch.maximum(pane, hill - c.y), c.colour(0.45, 0.70, 0.40))
    cross = torch.minimum((c.x - (x0 + x1) / 2).abs(), (c.y - (y0 + y1) / 2).abs()) - 0.009
    c.shape(torch.maximum(pane, cross), frame)
    c.shape(c.box(x0 - 0.05, y1 + 0.02, x1 + 0.05, y1 + 0.045), frame * 0.92)
    lx, top = c.rand(0.84, 0.89), c.rand(0.20, 0.27)
    c.light(0.55 * torch.exp(-((c.circle(lx, top + 0.08, 0.0) / 0.2) ** 2)), c.colour(1.0, 0.85, 0.5))
    c.shape(c.box(lx - 0.008, top, lx + 0.008, 0.9), c.colour(0.28, 0.24, 0.24))
    c.shape(c.ellipse(lx, 0.905, 0.07, 0.022), c.colour(0.28, 0.24, 0.24))
    shade = torch.maximum((c.x - lx).abs() - 0.045 - 0.35 * (c.y - top), (c.y - top - 0.075).abs() - 0.075)
    c.shape(shade, c.choose((1.0, 0.86, 0.50), (1.0, 0.75, 0.48), (0.98, 0.90, 0.66)))
    fx, fy = c.rand(0.55, 0.62), c.rand(0.10, 0.13)
    c.shape(c.box(fx - 0.09, fy - 0.065, fx + 0.09, fy + 0.065), c.colour(0.45, 0.28, 0.18))
    c.shape(
        c.box(fx - 0.07, fy - 0.045, fx + 0.07, fy + 0.045),
        c.choose((0.9, 0.6, 0.5), (0.5, 0.7, 0.8), (0.9, 0.85, 0.6)),
    )
    c.shape(
        c.ellipse(0.5, 0.93, c.rand(0.34, 0.42), 0.055),
        c.choose((0.70, 0.30, 0.32), (0.30, 0.45, 0.60), (0.45, 0.55, 0.38)),
    )


def stage(c: Canvas) -> None:
    """Folded curtains on both sides, a scalloped valance, crossing spotlights, boards with footlights."""
    back = c.choose((0.20, 0.10, 0.22), (0.12, 0.14, 0.28), (0.24, 0.10, 0.12))
    c.gradient(back * 0.7, back * 1.8, 0.0, 0.8)
    floor = c.rand(0.74, 0.78)
    wood = c.colour(0.62, 0.42, 0.26)
    depth = (c.y - floor + 0.25).clamp(min=0.05)
    board = ((c.x - 0.5) / depth * 2.2) % 1
    boards = c.fill(floor - c.y)
    c.paint(boards, wood * (0.7 + 0.8 * (c.y - floor)))
    c.paint(boards * c.fill(torch.minimum(board, 1 - board) * depth / 2.2 - 0.004), wood * 0.5)
    beam_colour = c.choose((1.0, 0.95, 0.75), (0.80, 0.90, 1.0), (1.0, 0.82, 0.70))
    for start, aim in ((c.rand(0.22, 0.3), c.rand(0.55, 0.66)), (c.rand(0.70, 0.78), c.rand(0.34, 0.45))):
        t = (c.y / 0.85).clamp(0, 1)
        beam = (c.x - start - (aim - start) * t).abs() - 0.02 - 0.17 * t
        c.light(c.fill(torch.maximum(beam, c.y - 0.86), 6.0) * 0.38, beam_colour)
        c.light(0.55 * c.fill(c.ellipse(aim, 0.86, 0.2, 0.05), 5.0), beam_colour)
    velvet = c.choose((0.76, 0.12, 0.16), (0.62, 0.10, 0.30), (0.15, 0.30, 0.62), (0.10, 0.45, 0.34))
    trim = c.colour(0.95, 0.78, 0.32)
    width = c.rand(0.18, 0.24)
    across = torch.minimum(c.x, 1 - c.x)
    edge = width - 0.05 * torch.sin(math.pi * c.y.clamp(0, 0.9) / 0.9) + 0.04 * smoothstep(0.65, 0.95, c.y)
    folds = 0.72 + 0.38 * torch.sin(across / edge * (2 * math.pi * 3.5) + 0.5)
    cloth = torch.maximum(across - edge, c.y - 0.92)
    c.shape(cloth, velvet * folds)
    c.shape(torch.maximum((across - edge).abs() - 0.007, c.y - 0.92), trim)
    drop = 0.13 + 0.055 * torch.sin(c.x * (math.pi * 6)).abs()
    c.shape(c.y - drop - 0.016, trim)
    c.shape(c.y - drop, velvet * (0.80 + 0.30 * torch.sin(c.x * (math.pi * 6)).abs()))
    c.shape(c.below(torch.full_like(c.x, 0.93)), c.colour(0.22, 0.14, 0.12))
    bulb = ((((c.x * 8) % 1 - 0.5) / 8) ** 2 + (c.y - 0.955) ** 2).sqrt() - 0.021
    c.light(0.5 * torch.exp(-(((bulb + 0.021) / 0.05) ** 2)), trim)
    c.shape(bulb, c.colour(1.0, 0.94, 0.70))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How one place is painted. grounded: whether a subject stands on a surface and so casts a contact shadow."""

    paint: Callable[[Canvas], None]
    grounded: bool = True

    def __call__(self, n: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """Paint n variations, [n, 3, size, size] in 0..1; the generator is on `device`."""
        canvas = Canvas(n, size, generator, device)
        self.paint(canvas)
        return canvas.mirrored()


STUDIO_PLACE = Place(paint=studio)
"""Painted for place index -1."""

PLACE_PAINTERS: tuple[Place, ...] = (
    Place(paint=outdoor.beach),
    Place(paint=outdoor.forest),
    Place(paint=outdoor.desert),
    Place(paint=outdoor.mountains),
    Place(paint=city),
    Place(paint=space, grounded=False),
    Place(paint=underwater, grounded=False),
    Place(paint=outdoor.meadow),
    Place(paint=room),
    Place(paint=stage),
    Place(paint=outdoor.street),
    Place(paint=outdoor.volcano),
)
"""In the order of vocabulary_world.PLACES."""
