"""Owns the painters of the outdoor places: beach, forest, desert, mountains, meadow, street, volcano.

Each paints on a `Canvas`; the registry is in places.py. Independent of subjects, lights and styles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .drawing import Canvas, lowest, smoothstep, triangle


def _palm(c: Canvas, x0: Tensor, top: Tensor, lean: Tensor, spread: Tensor) -> None:
    t = ((c.y - top) / (0.95 - top)).clamp(0, 1)
    centre = x0 + lean * (1 - t) ** 2
    trunk = torch.maximum((c.x - centre).abs() - 0.016 - 0.014 * t, torch.maximum(top - c.y, c.y - 0.95))
    c.shape(trunk, c.colour(0.52, 0.36, 0.22) * (0.9 + 0.12 * torch.sin(t * 60)))
    u, v = c.x - x0 - lean, c.y - top
    v = v - 2.2 * u * u
    radius, angle = (u * u + v * v + 1e-6).sqrt(), torch.atan2(v, u)
    reach = spread * (0.16 + 0.84 * torch.cos(angle * 3.5 + c.rand(0.5, 1.0)).abs() ** 1.3)
    leaf = c.colour(0.18, 0.55, 0.26, 0.06)
    c.shape((radius - reach) * 0.5, leaf * (0.75 + 1.5 * (reach - radius).clamp(0, 0.2)))


def beach(c: Canvas) -> None:
    """Palms on both sides, a sea with a foam line, sand, clouds and a sun."""
    horizon = c.rand(0.40, 0.48)
    c.gradient(c.colour(0.32, 0.66, 0.94), c.colour(0.82, 0.94, 0.98), 0.0, horizon)
    c.shape(c.circle(c.rand(0.3, 0.7), c.rand(0.09, 0.16), c.rand(0.05, 0.07)), c.colour(1.0, 0.93, 0.62, 0.03))
    c.cloud(c.rand(0.2, 0.8), c.rand(0.2, 0.3), c.rand(0.03, 0.05), c.colour(1.0, 1.0, 1.0, 0.0))
    depth = smoothstep(horizon, 0.72, c.y)
    sea = c.colour(0.08, 0.42, 0.72)
    c.paint(c.fill(horizon - c.y), sea + (c.colour(0.30, 0.80, 0.82) - sea) * depth)
    for row in (0.07, 0.14):
        ripple = (c.y - horizon - row - 0.006 * c.waves(5, 8)).abs() - 0.004
        c.paint(0.6 * c.fill(torch.maximum(ripple, c.waves(2, 4) * 0.02)), c.colour(0.85, 0.97, 0.98))
    shore = c.rand(0.66, 0.72) + 0.022 * c.waves(0.8, 1.6) + 0.008 * c.waves(2.5, 4)
    c.shape(c.below(shore - 0.022), c.colour(0.97, 0.99, 1.0, 0.02))
    c.shape(c.below(shore), c.colour(0.80, 0.70, 0.48))
    c.shape(c.below(shore + 0.03), c.colour(0.95, 0.85, 0.60))
    _palm(c, c.rand(0.06, 0.12), c.rand(0.17, 0.26), c.rand(0.02, 0.08), c.rand(0.19, 0.23))
    _palm(c, c.rand(0.90, 0.95), c.rand(0.24, 0.36), c.rand(-0.08, -0.02), c.rand(0.15, 0.19))
    sx, sy = c.rand(0.25, 0.75), c.rand(0.93, 0.96)
    u, v = c.x - sx, c.y - sy
    star = (u * u + v * v + 1e-6).sqrt() - 0.022 - 0.012 * torch.cos(torch.atan2(v, u) * 5 + 1)
    c.shape(star, c.colour(0.95, 0.48, 0.36))


def forest(c: Canvas) -> None:
    """Big trunks left and right, thinner ones behind, a leafy canopy above, undergrowth and mushrooms below."""
    c.gradient(c.colour(0.66, 0.84, 0.56), c.colour(0.88, 0.95, 0.70), 0.1, 0.7)
    for _ in range(5):
        x0, w = c.rand(0.05, 0.95), c.rand(0.014, 0.026)
        c.shape((c.x - x0).abs() - w, c.colour(0.52, 0.66, 0.46, 0.04))
    c.shape(c.below(0.70 + 0.02 * c.waves(1, 2)), c.colour(0.46, 0.66, 0.34))
    for low, high in ((0.20, 0.30), (0.72, 0.82)):
        x0, w = c.rand(low, high), c.rand(0.022, 0.034)
        c.shape(torch.maximum((c.x - x0).abs() - w, c.y - 0.78), c.colour(0.44, 0.40, 0.28, 0.04))
    ground = 0.80 + 0.02 * c.waves(0.8, 1.6)
    c.shape(c.below(ground), c.colour(0.30, 0.52, 0.24))
    for low, high in ((0.03, 0.08), (0.92, 0.97)):
        x0, w = c.rand(low, high), c.rand(0.075, 0.10)
        flare = w + 0.10 * smoothstep(0.70, 1.0, c.y) ** 2 + 0.006 * torch.sin(c.y * 22)
        bark = c.colour(0.42, 0.28, 0.18)
        shade = 0.85 + 0.35 * torch.sin((c.x - x0) / w * 5 + 0.6 * torch.sin(c.y * 14))
        c.shape(torch.maximum((c.x - x0).abs() - flare, c.y - 0.95), bark * shade)
    for height, amount in ((0.20, (0.34, 0.60, 0.26)), (0.12, (0.20, 0.44, 0.20))):
        lobes = torch.sin((c.x * c.rand(3.2, 4.4) + c.rand(0, 1)) * math.pi).abs()
        sides = 0.18 * (2 * c.x - 1) ** 4
        c.shape(c.y - height - 0.07 * lobes - sides, c.colour(*amount))
    blades = 0.05 * triangle(c.x * c.rand(11, 14) + c.rand(0, 1)) * (0.4 + 0.6 * c.waves(1, 2).abs())
    c.shape(c.below(0.95 - blades, 1.0), c.colour(0.18, 0.40, 0.18))
    for low, high in ((0.18, 0.30), (0.70, 0.82)):
        x0, y0, r = c.rand(low, high), c.rand(0.88, 0.91), c.rand(0.035, 0.05)
        c.shape(c.box(x0 - 0.3 * r, y0, x0 + 0.3 * r, y0 + 1.3 * r, 0.005), c.colour(0.96, 0.92, 0.84, 0.02))
        c.shape(
            torch.maximum(c.circle(x0, y0 + 0.2 * r, r), c.y - y0 - 0.3 * r),
            c.choose((0.86, 0.24, 0.20), (0.85, 0.55, 0.25)),
        )


def _cactus(c: Canvas, x0: Tensor, foot: Tensor, scale: Tensor) -> None:
    green = c.colour(0.24, 0.52, 0.32)
    w = 0.11 * scale
    arm, reach = c.rand(0.35, 0.5) * scale, 0.26 * scale
    parts = [c.segment(x0, foot, x0, foot - scale, w)]
    for side, height in ((-1.0, arm), (1.0, arm + 0.15 * scale)):
        ex = x0 + side * reach
        parts.append(c.segment(x0, foot - height, ex, foot - height, 0.7 * w))
        parts.append(c.segment(ex, foot - height, ex, foot - height - 0.28 * scale, 0.7 * w))
    d = lowest(*parts)
    c.shape(d, green * 0.62)
    c.shape(d + 0.009, green)
    c.paint(c.fill((c.x - x0 + 0.35 * w).abs() - 0.005) * c.fill(d + 0.02), green * 1.35)


def desert(c: Canvas) -> None:
    """Three sweeps of dunes with a lit and a shaded side, a large sun, cacti on both sides, a table mountain."""
    c.gradient(c.colour(0.45, 0.72, 0.90), c.colour(0.99, 0.90, 0.70), 0.0, 0.55)
    c.shape(c.circle(c.rand(0.3, 0.7), c.rand(0.13, 0.2), c.rand(0.075, 0.10)), c.colour(1.0, 0.90, 0.55, 0.03))
    mx, top, w = c.rand(0.7, 0.9), c.rand(0.34, 0.40), c.rand(0.10, 0.15)
    c.shape(torch.maximum((c.x - mx).abs() - w - 0.3 * (c.y - top), top - c.y), c.colour(0.80, 0.52, 0.40))
    for base, tone in ((0.52, 0.92), (0.65, 1.0), (0.80, 1.08)):
        peak, left, right = c.rand(0.1, 0.9), c.rand(0.2, 0.34), c.rand(0.5, 0.75)
        u = c.x - peak
        crest = base - 0.10 + torch.where(u < 0, -u * left, u * right * 0.6).clamp(max=0.16) + 0.01 * c.waves(0.8, 1.5)
        sand = c.colour(0.93, 0.72, 0.42, 0.03) * tone
        c.shape(c.below(crest), sand)
        fold = u + 0.05 * torch.sin((c.y - base) * 14) - 0.6 * (c.y - crest)
        c.paint(c.fill(crest - c.y) * c.fill(-fold, 2.0) * 0.75, sand * 0.72)
    _cactus(c, c.rand(0.09, 0.13), c.rand(0.80, 0.88), c.rand(0.34, 0.46))
    _cactus(c, c.rand(0.86, 0.91), c.rand(0.74, 0.84), c.rand(0.24, 0.34))


def _pine(c: Canvas, x0: Tensor, foot: Tensor, height: Tensor, colour: Tensor) -> None:
    t = (c.y - foot + height) / height
    tiers = 0.34 * height * (t * 0.55 + 0.45 * (t * 3 % 1) * (0.35 + 0.65 * t))
    c.shape(c.box(x0 - 0.012, foot - 0.02, x0 + 0.012, foot + 0.04), colour * 0.5)
    c.shape(torch.maximum((c.x - x0).abs() - tiers, torch.maximum(-t, t - 1) * height), colour)


def mountains(c: Canvas) -> None:
    """Snow-capped peaks, highest at the borders, a far range, pines in both lower corners."""
    c.gradient(c.colour(0.40, 0.66, 0.92), c.colour(0.88, 0.94, 0.98), 0.0, 0.6)
    c.cloud(c.rand(0.35, 0.65), c.rand(0.1, 0.16), c.rand(0.035, 0.05), c.colour(1.0, 1.0, 1.0, 0.0))
    far = 0.42 + 0.16 * (1 - triangle(c.x * c.rand(2.2, 3.0) + c.rand(0, 1)))
    c.shape(c.below(far, 0.8), c.colour(0.66, 0.76, 0.88))
    rock, snow = c.colour(0.42, 0.46, 0.58), c.colour(0.97, 0.98, 1.0, 0.01)
    for low, high, top in ((0.46, 0.58, 0.36), (0.80, 0.90, 0.17), (0.12, 0.22, 0.10)):
        peak, summit, slope = c.rand(low, high), c.rand(top, top + 0.07), c.rand(1.25, 1.6)
        u = c.x - peak
        jag = 0.016 * triangle(c.x * 9 + c.rand(0, 1))
        body = (summit + slope * u.abs() + jag - c.y) * 0.6
        c.shape(body, rock * 1.1)
        ridge = u - 0.04 * torch.sin((c.y - summit) * 20)
        c.paint(c.fill(body) * c.fill(-ridge, 2.0), rock * 0.72)
        cap = c.y - summit - 0.15 - 0.055 * triangle(u * c.rand(8, 10) + c.rand(0, 1))
        c.shape(torch.maximum(body, cap * 0.5), snow)
        c.paint(c.fill(torch.maximum(body, cap * 0.5)) * c.fill(-ridge, 2.0) * 0.35, rock * 1.2)
    c.shape(c.below(0.76 + 0.03 * c.waves(0.6, 1.2)), c.colour(0.44, 0.64, 0.40))
    c.shape(c.below(0.88 + 0.02 * c.waves(0.6, 1.2)), c.colour(0.56, 0.74, 0.44))
    for low, high, tall in ((0.2, 0.26, 0.22), (0.76, 0.8, 0.20), (0.04, 0.1, 0.40), (0.90, 0.96, 0.34)):
        _pine(
            c, c.rand(low, high), c.rand(0.86, 0.92), c.rand(tall - 0.03, tall + 0.05), c.colour(0.14, 0.38, 0.30, 0.04)
        )


def meadow(c: Canvas) -> None:
    """Rolling hills, a white picket fence, big flowers along the bottom, a round tree and clouds."""
    c.gradient(c.colour(0.42, 0.74, 0.96), c.colour(0.90, 0.97, 0.98), 0.0, 0.55)
    c.cloud(c.rand(0.12, 0.3), c.rand(0.1, 0.2), c.rand(0.04, 0.055), c.colour(1.0, 1.0, 1.0, 0.0))
    c.cloud(c.rand(0.6, 0.8), c.rand(0.08, 0.14), c.rand(0.035, 0.05), c.colour(1.0, 1.0, 1.0, 0.0))
    for base, green in ((0.46, (0.56, 0.78, 0.52)), (0.54, (0.46, 0.74, 0.38))):
        c.shape(c.below(base + 0.055 * c.waves(0.8, 1.4)), c.colour(*green))
    tx, ty, r = c.rand(0.86, 0.93), c.rand(0.34, 0.40), c.rand(0.10, 0.125)
    c.shape(c.box(tx - 0.016, ty, tx + 0.016, 0.62), c.colour(0.46, 0.32, 0.22))
    crown = lowest(
        c.circle(tx, ty, r),
        c.circle(tx - 0.7 * r, ty + 0.4 * r, 0.65 * r),
        c.circle(tx + 0.7 * r, ty + 0.4 * r, 0.65 * r),
    )
    c.shape(crown, c.colour(0.22, 0.54, 0.26))
    c.shape(c.circle(tx - 0.25 * r, ty - 0.25 * r, 0.55 * r), c.colour(0.34, 0.66, 0.32), 5.0)
    line = c.rand(0.60, 0.63)
    c.shape(c.below(line + 0.03 + 0.01 * c.waves(0.6, 1.0)), c.colour(0.42, 0.72, 0.30))
    white = c.colour(0.98, 0.97, 0.94, 0.02)
    pitch = c.rand(10.5, 12.5)
    u = ((c.x * pitch) % 1 - 0.5).abs() / pitch
    picket = torch.maximum(u - 0.021, torch.maximum(line - 0.115 + u * 1.1 - c.y, c.y - line - 0.075))
    fence = lowest(picket, (c.y - line + 0.05).abs() - 0.011, (c.y - line - 0.025).abs() - 0.011)
    c.shape(fence - 0.006, white * 0.68)
    c.shape(fence, white)
    c.shape(c.below(0.74 + 0.015 * c.waves(0.8, 1.5)), c.colour(0.36, 0.66, 0.26))
    for low, high, y0 in (
        (0.05, 0.12, 0.84),
        (0.2, 0.28, 0.92),
        (0.38, 0.46, 0.94),
        (0.56, 0.64, 0.93),
        (0.74, 0.8, 0.91),
        (0.88, 0.95, 0.83),
    ):
        fx, fy, r = c.rand(low, high), c.rand(y0 - 0.03, y0 + 0.02), c.rand(0.036, 0.05)
        c.shape(c.box(fx - 0.007, fy, fx + 0.007, 1.2), c.colour(0.16, 0.46, 0.18))
        p, q = c.x - fx, c.y - fy
        petals = (p * p + q * q + 1e-6).sqrt() - r * (0.78 + 0.26 * torch.cos(torch.atan2(q, p) * 5 + c.rand(0, 6)))
        c.shape(petals, c.choose((0.95, 0.30, 0.34), (1.0, 0.98, 0.95), (0.98, 0.62, 0.80), (0.62, 0.45, 0.90)))
        c.shape(c.circle(fx, fy, r * 0.36), c.colour(1.0, 0.82, 0.24, 0.03))


def street(c: Canvas) -> None:
    """Gabled houses on both sides and a road in perspective with a zebra crossing, a lamp post on each side."""
    vx, vy = c.rand(0.46, 0.54), c.rand(0.44, 0.48)
    c.gradient(c.colour(0.50, 0.74, 0.94), c.colour(0.92, 0.94, 0.94), 0.0, vy)
    c.shape(c.below(vy + 0.0 * c.x), c.colour(0.55, 0.68, 0.46))
    e = (c.x - vx).abs().clamp(min=0.05)
    v = (c.y - vy) / e
    z = 1.30 / e + torch.where(c.x < vx, c.rand(0, 1), c.rand(0, 1))
    house = (z * 0.5).floor().long().clamp(0, 15).expand(c.n, 1, 1, c.size)
    along = (z * 0.5) % 1
    tone = c.table(3, 16)[:, :, None, :].gather(3, house.expand(c.n, 3, 1, c.size))
    wall = 0.55 + 0.4 * tone
    eaves = -0.72
    roof = (eaves - 0.34 * triangle(along) - v) * e
    near = torch.maximum(0.13 - e, (v - 0.36) * e)
    c.shape(torch.maximum(roof, near) * 0.8, c.choose((0.68, 0.32, 0.26), (0.42, 0.36, 0.42), (0.60, 0.40, 0.28)))
    c.shape(torch.maximum((eaves - v) * e, near), wall)
    c.paint(
        c.fill(torch.maximum((eaves - v) * e, near)) * c.fill((torch.minimum(along, 1 - along) - 0.02) * e * e),
        wall * 0.5,
    )
    pane = torch.maximum(((along * 2) % 1 - 0.5).abs() - 0.22, ((v + 0.40).abs() - 0.13) * 1.5) * e
    pane = torch.maximum(pane * 0.6, near)
    c.shape(pane - 0.008, wall * 1.25)
    c.shape(pane, c.colour(0.30, 0.42, 0.56))
    door = torch.maximum((along - 0.5).abs() - 0.10, torch.maximum(-0.06 - v, v - 0.36)) * e
    c.shape(torch.maximum(door * 0.7, near), c.choose((0.55, 0.25, 0.2), (0.2, 0.4, 0.35), (0.25, 0.3, 0.5)))
    down = (c.y - vy).clamp(min=1e-3)
    reach = (c.x - vx).abs() / down
    ground = c.fill(vy + 0.035 - c.y)
    c.paint(ground * c.fill((reach - 2.8) * down), c.colour(0.76, 0.74, 0.72))
    c.paint(ground * c.fill((reach - 1.06) * down * 0.8), c.colour(0.90, 0.89, 0.86))
    c.paint(ground * c.fill((reach - 0.98) * down * 0.8), c.colour(0.36, 0.37, 0.41))
    stripes = (((c.x - vx) / down * 3.2 + 0.5) % 1 - 0.5).abs() - 0.25
    top = c.rand(0.80, 0.84)
    zebra = torch.maximum(stripes * down / 3.2, torch.maximum(top - c.y, c.y - top - 0.12))
    c.paint(c.fill(torch.maximum(zebra, (reach - 0.92) * down)), c.colour(0.97, 0.96, 0.93, 0.02))
    iron = c.colour(0.14, 0.16, 0.20)
    for low, high, side in ((0.15, 0.19, 1.0), (0.81, 0.85, -1.0)):
        x0, height = c.rand(low, high), c.rand(0.13, 0.19)
        arm = x0 + side * 0.075
        c.light(0.5 * torch.exp(-((c.circle(arm, height + 0.05, 0.0) / 0.09) ** 2)), c.colour(1.0, 0.9, 0.6))
        c.shape(lowest(c.segment(x0, 0.92, x0, height, 0.010), c.segment(x0, height, arm, height, 0.009)), iron)
        c.shape(c.box(x0 - 0.02, 0.88, x0 + 0.02, 0.93), iron)
        c.shape(c.circle(arm, height + 0.035, 0.030), c.colour(1.0, 0.93, 0.55, 0.03))
        c.shape(torch.maximum(c.circle(arm, height + 0.035, 0.036), c.y - height - 0.022), iron)


def volcano(c: Canvas) -> None:
    """A cone with a glowing crater, forked lava streams, a plume of smoke, jagged rocks and a lava river in front."""
    c.gradient(c.colour(0.34, 0.16, 0.24), c.colour(0.98, 0.56, 0.30), 0.0, 0.7)
    peak, top = c.rand(0.36, 0.64), c.rand(0.27, 0.33)
    drift = c.rand(0.16, 0.34)
    for step, r in enumerate((0.055, 0.075, 0.095, 0.12, 0.14)):
        t = step / 4
        px, py = peak + drift * t**1.5 + c.rand(-0.03, 0.03), top - 0.06 - 0.24 * t
        smoke = c.colour(0.66 - 0.10 * t, 0.56 - 0.08 * t, 0.58 - 0.06 * t, 0.02)
        c.shape(c.circle(px, py, r), smoke * 0.72)
        c.shape(c.circle(px - 0.015, py - 0.02, r * 0.82), smoke, 3.0)
    c.light(0.8 * torch.exp(-((c.circle(peak, top, 0.0) / 0.16) ** 2)), c.colour(1.0, 0.45, 0.12))
    u = c.x - peak
    mouth = 0.085
    curve = top + 1.6 * (u.abs() - mouth).clamp(min=0) - 0.75 * (u.abs() - mouth).clamp(min=0) ** 2
    dip = 0.02 * torch.cos(u / mouth * math.pi).clamp(min=-0.2) * (u.abs() < mouth * 1.5)
    cone = (curve + dip - c.y) * 0.65
    rock = c.colour(0.32, 0.22, 0.24, 0.03)
    c.shape(cone, rock * (1.35 - 0.6 * smoothstep(-0.3, 0.3, u)))
    lava, core = c.colour(0.98, 0.42, 0.10, 0.03), c.colour(1.0, 0.84, 0.32, 0.03)
    for slope, w in ((-0.62, 0.026), (0.55, 0.030), (-0.05, 0.024)):
        bend = c.rand(slope - 0.08, slope + 0.08)
        run = c.y - top
        stream = (u - bend * run - 0.025 * torch.sin(run * c.rand(15, 20) + c.rand(0, 6))).abs() - w * (0.7 + run)
        stream = torch.maximum(stream * 0.8, torch.maximum(cone, -run))
        c.shape(stream, lava)
        c.shape(stream + 0.013, core)
    c.shape(c.ellipse(peak, top + 0.008, mouth, 0.02), core)
    river = 0.84 + 0.015 * c.waves(0.8, 1.6)
    c.shape(c.below(river - 0.03), rock * 0.8)
    c.shape(c.below(river), lava)
    c.paint(c.fill((c.y - river - 0.055 - 0.012 * c.waves(1.5, 2.5)).abs() - 0.012), core)
    teeth = triangle(c.x * c.rand(4.5, 6.0) + c.rand(0, 1)) * c.rand(0.05, 0.08)
    sides = 0.30 * ((2 * c.x - 1).abs() - 0.55).clamp(min=0)
    c.shape(c.below(0.975 - teeth * (0.4 + 0.6 * (2 * c.x - 1).abs()) - sides, 0.8), rock * 0.5)
    for low, high in ((0.03, 0.22), (0.78, 0.97)):
        for _ in range(3):
            c.shape(c.circle(c.rand(low, high), c.rand(0.25, 0.65), c.rand(0.008, 0.015)), core, 3.0)
