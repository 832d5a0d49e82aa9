"""Owns the drawings of an analysis, as inline SVG: heat maps, a picture with what moves in it, speed against fidelity.

Plain strings that need nothing from outside. Independent of what the values mean.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.core.types import Picture

WIDTH_PX = 920
EQUAL_DB = 60.0
"""Top of the axis of fidelity; what differs less, or not at all, is drawn here."""
_STOPS = ((247, 249, 252), (189, 215, 238), (94, 158, 208), (31, 98, 163), (10, 42, 94))
_TEXT = 'font-size="11" fill="#3a4350"'
_LABEL_PX, _ROW_PX, _TOP_PX = 150, 16, 20
_GAP_PX = 15  # between labels

Array = npt.NDArray[np.float64]


def colour(share: float) -> str:
    """Return the colour of 0 (pale) to 1 (dark blue), as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    low = min(int(place), len(_STOPS) - 2)
    mixed = (round(a + (b - a) * (place - low)) for a, b in zip(_STOPS[low], _STOPS[low + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def heat_map(
    values: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    most: float,
    axis: str,
    width_px: int = WIDTH_PX,
    unit: str = "%",
    label_px: int = _LABEL_PX,
) -> str:
    """Draw values [rows, columns], shares of 1. most: the value of the darkest colour. axis: what the columns are."""
    assert values.shape == (len(rows), len(columns)), values.shape
    cell = (width_px - label_px - 8) / max(1, len(columns))
    height = _TOP_PX + _ROW_PX * len(rows) + 26
    parts = []
    for r, name in enumerate(rows):
        y = _TOP_PX + r * _ROW_PX
        parts.append(f'<text x="{label_px - 8}" y="{y + 12}" text-anchor="end" {_TEXT}>{escape(name)}</text>')
        for c, column in enumerate(columns):
            value = float(values[r, c])
            told = f"{escape(name)}, {escape(axis)} {escape(column)}: {100 * value:.1f} {unit}"
            parts.append(
                f'<rect x="{label_px + c * cell:.2f}" y="{y}" width="{cell + 0.3:.2f}" height="{_ROW_PX - 1}" '
                f'fill="{colour(value / most)}"><title>{told}</title></rect>'
            )
    every = max(1, math.ceil(len(columns) * 26 / (width_px - label_px)))
    for c in range(0, len(columns), every):
        x = label_px + (c + 0.5) * cell
        parts.append(f'<text x="{x:.1f}" y="{_TOP_PX - 6}" text-anchor="middle" {_TEXT}>{escape(columns[c])}</text>')
    parts.append(f'<text x="{label_px}" y="{height - 8}" {_TEXT}>{escape(axis)}</text>')
    parts.append(_key(width_px - 258, height - 19, most, unit))
    return _svg(width_px, height, parts)


def _key(left: float, top: float, most: float, unit: str) -> str:
    cells = "".join(
        f'<rect x="{left + 60 + 6 * step}" y="{top}" width="6.3" height="11" fill="{colour(step / 19)}"/>'
        for step in range(20)
    )
    low = f'<text x="{left + 54}" y="{top + 10}" text-anchor="end" {_TEXT}>0 {unit}</text>'
    return f'{low}{cells}<text x="{left + 186}" y="{top + 10}" {_TEXT}>{100 * most:.0f} {unit}, more</text>'


def picture_uri(picture: Picture) -> str:
    """Return a picture [H, W, 3] uint8 RGB as a data URI."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done, "memory is all that can be missing"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def over_picture(picture: Picture, values: Array, *, most: float, told: str, width_px: int = 440) -> str:
    """Draw values [rows, columns] over a picture: the higher, the more of a warm colour. most: of the fullest.
    told: what a value is, with {} in place of its percentage."""
    height = width_px * picture.shape[0] / picture.shape[1]
    wide, high = width_px / values.shape[1], height / values.shape[0]
    parts = [f'<image href="{picture_uri(picture)}" width="{width_px}" height="{height:.1f}"/>']
    for r, c in np.ndindex(values.shape):
        value = float(values[r, c])
        text = escape(told.format(f"{100 * value:.0f}"))
        parts.append(
            f'<rect x="{c * wide:.2f}" y="{r * high:.2f}" width="{wide:.2f}" height="{high:.2f}" fill="#ff5a1f" '
            f'fill-opacity="{0.72 * min(1.0, value / most):.2f}"><title>{text}</title></rect>'
        )
    return _svg(width_px, height, parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way to run. name: "": a small dot. filled: of a marker; chosen ones are."""

    speed_up: float
    psnr_db: float
    name: str = ""
    filled: bool = True
    ink: str = "#1f62a3"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    """From figures to pixels; the horizontal axis is logarithmic. The names of points stand to the right of `right`."""

    slowest: float
    fastest: float
    least_db: float
    height: float
    left: float = 56
    right: float = WIDTH_PX - 170
    top: float = 16

    @property
    def bottom(self) -> float:
        """Where the lowest fidelity is."""
        return self.height - 44

    @classmethod
    def around(cls, points: Sequence[Point], height: float) -> Self:
        """Return axes that hold all points and "as fast as uncached"."""
        worst = min(EQUAL_DB, *(point.psnr_db for point in points))
        return cls(
            slowest=min(0.9, 0.97 * min(point.speed_up for point in points)),
            fastest=1.08 * max(1.5, *(point.speed_up for point in points)),
            least_db=min(24.0, math.floor(worst / 4) * 4),
            height=height,
        )

    def x(self, speed_up: float) -> float:
        """Where a speed-up is."""
        share = math.log(speed_up / self.slowest) / math.log(self.fastest / self.slowest)
        return self.left + share * (self.right - self.left)

    def y(self, psnr_db: float) -> float:
        """Where a fidelity is; at the top what hardly differs."""
        share = (min(psnr_db, EQUAL_DB) - self.least_db) / (EQUAL_DB - self.least_db)
        return self.bottom - share * (self.bottom - self.top)


def pareto(points: Sequence[Point], floors: Sequence[tuple[str, float]], *, height_px: int = 380) -> str:
    """Draw how fast against how faithful. floors: names and dB of dashed lines."""
    axes = _Axes.around(points, height_px)
    dots = (
        f'<circle cx="{axes.x(point.speed_up):.1f}" cy="{axes.y(point.psnr_db):.1f}" r="3" fill="#b4bdc9"/>'
        for point in points
        if not point.name
    )
    return _svg(WIDTH_PX, height_px, [*_grid(axes), *_floors(axes, floors), *dots, *_named(axes, points)])


def _grid(axes: _Axes) -> Iterable[str]:
    for decibels in range(int(axes.least_db), int(EQUAL_DB) + 1, 4):
        y = axes.y(decibels)
        text = "equal" if decibels == EQUAL_DB else f"{decibels} dB"
        yield f'<line x1="{axes.left}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6eaf0"/>'
        yield f'<text x="{axes.left - 8}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{text}</text>'
    for speed_up in _ticks(axes.slowest, axes.fastest):
        x = axes.x(speed_up)
        line = "#9aa5b4" if speed_up == 1 else "#e6eaf0"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axes.top}" y2="{axes.bottom}" stroke="{line}"/>'
        yield f'<text x="{x:.1f}" y="{axes.bottom + 17}" text-anchor="middle" {_TEXT}>{speed_up:g}×</text>'
    middle = (axes.left + axes.right) / 2
    yield f'<text x="{middle}" y="{axes.height - 8}" text-anchor="middle" {_TEXT}>times as fast as uncached</text>'


def _floors(axes: _Axes, floors: Sequence[tuple[str, float]]) -> Iterable[str]:
    for name, decibels in floors:
        y = axes.y(decibels)
        ends = f'x1="{axes.left}" x2="{axes.right}" y1="{y:.1f}" y2="{y:.1f}"'
        yield f'<line {ends} stroke="#d9534f" stroke-dasharray="5 4"/>'
        yield f'<text x="{axes.left + 6}" y="{y - 4:.1f}" font-size="11" fill="#b03b37">{escape(name)}</text>'


def _named(axes: _Axes, points: Sequence[Point]) -> Iterable[str]:
    named = sorted((point for point in points if point.name), key=lambda point: axes.y(point.psnr_db))
    labels = _apart([axes.y(point.psnr_db) for point in named], axes.top, axes.bottom)
    for point, label in zip(named, labels, strict=True):
        x, y, end = axes.x(point.speed_up), axes.y(point.psnr_db), axes.right
        yield (
            f'<polyline points="{x:.1f},{y:.1f} {end + 4},{label:.1f} {end + 10},{label:.1f}" fill="none" '
            f'stroke="{point.ink}" stroke-opacity="0.35"/>'
        )
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{point.ink if point.filled else "#ffffff"}" '
            f'stroke="{point.ink}" stroke-width="2"/>'
        )
        yield (
            f'<text x="{end + 14}" y="{label + 4:.1f}" font-size="12" fill="{point.ink}">{escape(point.name)}</text>'
        )


def _apart(places: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return increasing places moved so that they are a line apart, within bounds if they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + _GAP_PX if moved else top))
    limit = bottom
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - _GAP_PX
    return moved


def _ticks(slowest: float, fastest: float) -> list[float]:
    wanted: Iterable[float] = (0.5, 0.7, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 80, 120)
    inside = [tick for tick in wanted if slowest <= tick <= fastest]
    kept: list[float] = []
    for tick in inside:
        apart = math.log(fastest / slowest) / 14
        if not kept or math.log(tick / kept[-1]) >= apart or tick == 1:
            kept.append(tick)
    return kept


def _svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" '
        f'font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )
