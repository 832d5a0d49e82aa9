"""Owns the Pareto plots of bench.cache: what each cache saves against what it costs.

``python -m bench.cache_plots RESULT.json --out docs/images/cache.png``, where RESULT.json is what bench.cache --json
printed: its `runs` are objects with `clip`, `cache`, `speed_up`, `psnr_db` (null: equal) and, for a preset, `preset`.
One panel per clip, one marker per cache; presets are large, black and named; a line joins what nothing else beats; a
dotted corner shows a clip's goal. Draws with OpenCV only.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np

from bench.drift_plots import BLACK, MARGIN_PX, PANEL_PX, Ink, inks

EQUAL_DB = 60.0
"""Top of the axis; what differs less, or not at all, is drawn here."""
LEAST_DB = 10.0
GREY, DARK = (205, 205, 205), (40, 40, 40)
MARKER_PX, PRESET_PX = 4, 6
MARKERS = ("circle", "square", "up", "diamond", "cross", "down")
"""Shapes, so that colours need not be told apart alone."""
KEY_LINE_PX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One cache on one clip. speed_up: uncached time over its own; psnr_db: against the uncached run, infinite if
    equal; preset: its name on the page, or "".
    """

    clip: str
    cache: str
    speed_up: float
    psnr_db: float
    preset: str = ""

    @staticmethod
    def of(record: Mapping[str, Any]) -> Run:
        """A run of bench.cache's JSON. Raises ValueError if it lacks a field."""
        if missing := [name for name in ("clip", "cache", "speed_up", "psnr_db") if name not in record]:
            raise ValueError(
                f"a run of the result lacks {', '.join(missing)}; make it with python -m bench.cache --json"
            )
        decibels = record["psnr_db"]
        return Run(
            clip=record["clip"],
            cache=record["cache"],
            speed_up=float(record["speed_up"]),
            psnr_db=math.inf if decibels is None else float(decibels),
            preset=record.get("preset") or "",
        )


Goal = tuple[float, float]
GOALS: Mapping[str, Goal] = MappingProxyType(
    {"still": (1.8, 32.0), "figure": (1.4, 30.0), "fast": (0.97, 30.0), "paused": (5.0, EQUAL_DB)}
)
"""(speed-up, dB) that the balanced preset, or on repeated frames the exact one, must reach on a clip."""


def pareto_front(runs: Iterable[Run]) -> list[Run]:
    """Runs that no other beats in both speed-up and dB, fastest last; of equal ones the first."""
    front: list[Run] = []
    for run in sorted(runs, key=lambda run: (-run.speed_up, -run.psnr_db)):
        if not front or run.psnr_db > front[-1].psnr_db:
            front.append(run)
    return front[::-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """From figures to pixels of a panel. fastest: right end; the left one is the slowest run's, at most 0.9."""

    slowest: float
    fastest: float
    worst_db: float

    @staticmethod
    def around(runs: Sequence[Run], goal: Goal | None) -> Axes:
        """Axes that hold all runs, the goal, and "as fast as without"."""
        speeds = [run.speed_up for run in runs] + ([goal[0]] if goal else [])
        decibels = [run.psnr_db for run in runs] + ([goal[1]] if goal else [])
        return Axes(
            slowest=min(0.9, *speeds),
            fastest=1.05 * max(1.5, *speeds),
            worst_db=max(LEAST_DB, 10 * math.floor(min(29.0, *decibels) / 10)),
        )

    def at(self, speed_up: float, psnr_db: float) -> tuple[int, int]:
        """(x, y); the horizontal axis is logarithmic, and what is off the scale is drawn at its edge."""
        width, height = PANEL_PX
        x = math.log(max(speed_up, self.slowest) / self.slowest) / math.log(self.fastest / self.slowest)
        y = (min(max(psnr_db, self.worst_db), EQUAL_DB) - self.worst_db) / (EQUAL_DB - self.worst_db)
        return round(MARGIN_PX + x * (width - 2 * MARGIN_PX)), round(height - MARGIN_PX - y * (height - 2 * MARGIN_PX))


def draw_panel(clip: str, runs: Sequence[Run], ink: Mapping[str, Ink], goal: Goal | None = None) -> np.ndarray:
    """uint8 BGR [h, w, 3] of one clip's runs."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    axes = Axes.around(runs, goal)
    _draw_frame(panel, axes, clip)
    if goal:
        _draw_goal(panel, axes, goal)
    front = np.array([axes.at(run.speed_up, run.psnr_db) for run in pareto_front(runs)], np.int32)
    cv2.polylines(panel, [front], False, (150, 150, 150), 1, cv2.LINE_AA)
    shapes = {cache: MARKERS[number % len(MARKERS)] for number, cache in enumerate(ink)}
    for run in sorted(runs, key=lambda run: run.preset != ""):
        at = axes.at(run.speed_up, run.psnr_db)
        draw_marker(panel, at, shapes[run.cache], ink[run.cache], PRESET_PX if run.preset else MARKER_PX)
        if run.preset:
            room = 8 * len(run.preset) + 9
            left = at[0] + 9 if at[0] + room < width else at[0] - room
            _write(panel, run.preset, left, at[1] + 4, BLACK)
    return panel


def _draw_frame(panel: np.ndarray, axes: Axes, clip: str) -> None:
    width, height = PANEL_PX
    for decibels in range(int(axes.worst_db), int(EQUAL_DB) + 1, 10):
        left, y = axes.at(axes.slowest, decibels)
        cv2.line(panel, (left, y), (width - MARGIN_PX, y), (238, 238, 238), 1)
        _write(panel, str(decibels), 14, y + 4, DARK)
    one = axes.at(1.0, axes.worst_db)[0]
    cv2.line(panel, (one, MARGIN_PX), (one, height - MARGIN_PX), GREY, 1)
    cv2.rectangle(panel, (MARGIN_PX, MARGIN_PX), (width - MARGIN_PX, height - MARGIN_PX), GREY, 1)
    _write(panel, f"{clip}: dB against uncached", 8, 20, DARK)
    for speed_up in (1.0, 1.5, 2, 3, 5, 8, 12, 20, 40, 80, 160):
        if axes.slowest <= speed_up <= axes.fastest and (speed_up != 1.5 or axes.fastest < 6):
            _write(panel, f"{speed_up:g}x", axes.at(speed_up, axes.worst_db)[0] - 8, height - MARGIN_PX + 16, DARK)
    _write(panel, "times as fast", width - MARGIN_PX - 92, height - 8, DARK)


def _draw_goal(panel: np.ndarray, axes: Axes, goal: Goal) -> None:
    """The corner that a run has to be in, dotted: to the right of it, and above."""
    x, y = axes.at(*goal)
    for right in range(x, PANEL_PX[0] - MARGIN_PX, 6):
        cv2.line(panel, (right, y), (right + 2, y), (90, 90, 200), 1)
    for up in range(y, MARGIN_PX, -6):
        cv2.line(panel, (x, up), (x, up - 2), (90, 90, 200), 1)


def draw_marker(panel: np.ndarray, at: tuple[int, int], shape: str, colour: Ink, radius: int) -> None:
    """One of MARKERS, in place."""
    x, y = at
    outlines = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "up": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        "down": ((0, 1.2), (1.1, -0.9), (-1.1, -0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    }
    if shape == "circle":
        cv2.circle(panel, at, radius, colour, -1, cv2.LINE_AA)
    elif shape == "cross":
        for sign in (1, -1):
            cv2.line(panel, (x - radius, y - sign * radius), (x + radius, y + sign * radius), colour, 2, cv2.LINE_AA)
    else:
        points = np.array([(x + radius * dx, y + radius * dy) for dx, dy in outlines[shape]])
        cv2.fillPoly(panel, [points.round().astype(np.int32)], colour, cv2.LINE_AA)


def draw_key(ink: Mapping[str, Ink], presets: Mapping[str, str]) -> np.ndarray:
    """The legend, in as many columns as it needs. presets: names by cache."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    rows = (height - 24) // KEY_LINE_PX
    column_px = width // max(1, -(-len(ink) // rows))
    for number, (cache, colour) in enumerate(ink.items()):
        left, base = 14 + column_px * (number // rows), 22 + KEY_LINE_PX * (number % rows)
        draw_marker(panel, (left, base - 4), MARKERS[number % len(MARKERS)], colour, MARKER_PX)
        name = f"{cache} ({presets[cache]})" if cache in presets else cache
        _write(panel, name, left + 12, base, BLACK if cache in presets else DARK)
    return panel


def _write(panel: np.ndarray, text: str, left: int, base: int, colour: Ink) -> None:
    cv2.putText(panel, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def plot(runs: Sequence[Run], out: Path, *, goals: Mapping[str, Goal] = GOALS, columns: int = 3) -> None:
    """Write a panel per clip, in the order of the runs, and the legend as one picture. Raises ValueError for none."""
    if not runs:
        raise ValueError("there is nothing to plot: the result has no runs")
    presets = {run.cache: run.preset for run in runs if run.preset}
    ink = inks(list(dict.fromkeys(run.cache for run in runs)), bold=list(presets))
    panels = [
        draw_panel(clip, [run for run in runs if run.clip == clip], ink, goals.get(clip))
        for clip in dict.fromkeys(run.clip for run in runs)
    ]
    panels.append(draw_key(ink, presets))
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
    rows = [np.concatenate(panels[at : at + columns], 1) for at in range(0, len(panels), columns)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), np.concatenate(rows)):
        raise ValueError(f"{out} could not be written; give a .png file")


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the result named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cache_plots", description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    result = json.loads(options.result.read_text(encoding="utf-8"))
    plot([Run.of(record) for record in result["runs"]], options.out)


if __name__ == "__main__":
    main()
