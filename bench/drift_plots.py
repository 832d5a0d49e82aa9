"""Owns the plots of bench.drift: ``python -m bench.drift_plots docs/drift --out docs/images/drift.png --bold sink-6``.

One panel per figure, one line per case, over the seconds of the stream; --bold: cases drawn as thick black lines on
top. Draws with OpenCV only.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

PANEL_PX, MARGIN_PX, LINE_PX = (460, 240), 40, 16
FIGURES = (
    "sharpness", "saturation", "degree", "flicker", "histogram_drift", "subject", "place", "style",
)  # fmt: skip

THICK_PX = 3

Lines = Mapping[str, Sequence[float]]
Ink = tuple[int, int, int]
BLACK = (0, 0, 0)


def read_lines(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Curves by figure and case. Raises FileNotFoundError if the folder has no case."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .json of bench.drift; run python -m bench.drift --out {folder}")
    curves = {file.stem: json.loads(file.read_text(encoding="utf-8"))["curves"] for file in files}
    return {name: {case: c[name] for case, c in curves.items() if name in c} for name in FIGURES}


def inks(cases: Sequence[str], bold: Sequence[str] = ()) -> dict[str, Ink]:
    """A colour (BGR) for each case, in drawing order: the bold ones last, in black."""
    thin = [case for case in cases if case not in bold]
    colours: dict[str, Ink] = {}
    for number, case in enumerate(thin):
        red, green, blue = colorsys.hsv_to_rgb(number / len(thin), 0.85, (0.45, 0.95, 0.7)[number % 3])
        colours[case] = (int(255 * blue), int(255 * green), int(255 * red))
    return colours | {case: BLACK for case in cases if case in bold}


def draw_panel(title: str, lines: Lines, ink: Mapping[str, Ink]) -> np.ndarray:
    """uint8 BGR [h, w, 3]; the value axis begins at 0."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    maximum = max((max(line) for line in lines.values()), default=1.0) or 1.0
    seconds = max((len(line) for line in lines.values()), default=1)
    corner = (MARGIN_PX, MARGIN_PX), (width - MARGIN_PX, height - MARGIN_PX)
    cv2.rectangle(panel, *corner, (210, 210, 210), 1)
    for case in (case for case in ink if case in lines):
        line = np.array(lines[case])
        x = MARGIN_PX + np.arange(len(line)) / max(1, seconds - 1) * (width - 2 * MARGIN_PX)
        y = height - MARGIN_PX - line / maximum * (height - 2 * MARGIN_PX)
        points = np.stack([x, y], 1).round().astype(np.int32)
        cv2.polylines(panel, [points], False, ink[case], _thickness(ink[case]), cv2.LINE_AA)
    labels = ((title, 8, 20), (f"{maximum:.3g}", 2, MARGIN_PX + 4), ("0", 2, height - MARGIN_PX))
    for text, left, base in (*labels, (f"{seconds} s", width - MARGIN_PX - 20, height - 14)):
        _write(panel, text, left, base, (40, 40, 40))
    return panel


def _thickness(colour: Ink) -> int:
    return THICK_PX if colour == BLACK else 1


def draw_key(ink: Mapping[str, Ink]) -> np.ndarray:
    """The legend."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    for number, (case, colour) in enumerate(ink.items()):
        base = 20 + LINE_PX * number
        cv2.line(panel, (12, base - 4), (40, base - 4), colour, _thickness(colour) + 1, cv2.LINE_AA)
        _write(panel, case, 48, base, (40, 40, 40))
    return panel


def _write(panel: np.ndarray, text: str, left: int, base: int, colour: Ink) -> None:
    cv2.putText(panel, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def plot(folder: Path, out: Path, *, bold: Sequence[str] = (), columns: int = 3) -> None:
    """Write all panels and the legend as one picture. Raises ValueError for an unknown bold case."""
    lines = read_lines(folder)
    cases_found = sorted({case for cases in lines.values() for case in cases})
    if unknown := sorted({*bold} - {*cases_found}):
        raise ValueError(f"{folder} has no case {', '.join(unknown)}; it has {', '.join(cases_found)}")
    ink = inks(cases_found, bold)
    panels = [draw_panel(name, cases, ink) for name, cases in lines.items() if cases] + [draw_key(ink)]
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
    rows = [np.concatenate(panels[i : i + columns], 1) for i in range(0, len(panels), columns)]
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), np.concatenate(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.drift_plots", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bold", nargs="+", default=[], metavar="CASE")
    options = parser.parse_args(arguments)
    plot(options.folder, options.out, bold=options.bold)


if __name__ == "__main__":
    main()
