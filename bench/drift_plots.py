"""Owns the plots of bench.drift: ``python -m bench.drift_plots docs/drift --out docs/images/drift.png``.

A panel for each figure, a line for each case, over the seconds of the stream. Draws with OpenCV alone.
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

Lines = Mapping[str, Sequence[float]]


def read_lines(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Curves by figure and case. FileNotFoundError: the folder has no case."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} has no .json of bench.drift; run python -m bench.drift --out {folder}")
    curves = {file.stem: json.loads(file.read_text(encoding="utf-8"))["curves"] for file in files}
    return {name: {case: c[name] for case, c in curves.items() if name in c} for name in FIGURES}


def inks(cases: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """A colour (BGR) for each case."""
    found = {}
    for number, case in enumerate(cases):
        red, green, blue = colorsys.hsv_to_rgb(number / max(1, len(cases)), 0.85, 0.55 + 0.3 * (number % 2))
        found[case] = (int(255 * blue), int(255 * green), int(255 * red))
    return found


def draw_panel(title: str, lines: Lines, ink: Mapping[str, tuple[int, int, int]]) -> np.ndarray:
    """uint8 BGR [h, w, 3]; the value axis begins at 0."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    most = max((max(line) for line in lines.values()), default=1.0) or 1.0
    seconds = max((len(line) for line in lines.values()), default=1)
    corner = (MARGIN_PX, MARGIN_PX), (width - MARGIN_PX, height - MARGIN_PX)
    cv2.rectangle(panel, *corner, (210, 210, 210), 1)
    for case, line in lines.items():
        x = MARGIN_PX + np.arange(len(line)) / max(1, seconds - 1) * (width - 2 * MARGIN_PX)
        y = height - MARGIN_PX - np.array(line) / most * (height - 2 * MARGIN_PX)
        cv2.polylines(panel, [np.stack([x, y], 1).round().astype(np.int32)], False, ink[case], 1, cv2.LINE_AA)
    labels = ((title, 8, 20), (f"{most:.3g}", 2, MARGIN_PX + 4), ("0", 2, height - MARGIN_PX))
    for text, left, base in (*labels, (f"{seconds} s", width - MARGIN_PX - 20, height - 14)):
        _write(panel, text, left, base, (40, 40, 40))
    return panel


def draw_key(ink: Mapping[str, tuple[int, int, int]]) -> np.ndarray:
    """Which colour is which case."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    for number, (case, colour) in enumerate(ink.items()):
        base = 20 + LINE_PX * number
        cv2.line(panel, (12, base - 4), (40, base - 4), colour, 2, cv2.LINE_AA)
        _write(panel, case, 48, base, (40, 40, 40))
    return panel


def _write(panel: np.ndarray, text: str, left: int, base: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(panel, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def plot(folder: Path, out: Path, *, columns: int = 3) -> None:
    """Write all panels and the key as one picture."""
    lines = read_lines(folder)
    ink = inks(sorted({case for cases in lines.values() for case in cases}))
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
    options = parser.parse_args(arguments)
    plot(options.folder, options.out)


if __name__ == "__main__":
    main()
