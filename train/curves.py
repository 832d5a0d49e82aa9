"""Owns the plot of learning curves: ``python -m train.curves docs/curves/*.jsonl --out docs/images/curves.png``.

Draws with OpenCV only. Reads JSON lines with a stage, seconds and a loss.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

PANEL_PX, MARGIN_PX = (420, 260), 44
INK = ((180, 80, 30), (30, 110, 200), (60, 150, 60), (140, 60, 160))

Curve = tuple[list[float], list[float]]


def read_curves(file: Path) -> dict[str, Curve]:
    """(seconds, loss) of each stage (and run) of a log; stages with fewer than two losses are omitted."""
    curves: dict[str, Curve] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        loss = record.get("loss", record.get("fake_loss"))
        if loss is not None and loss > 0:
            name = record["stage"] + (f" {record['run']}" if "run" in record else "")
            seconds, losses = curves.setdefault(name, ([], []))
            seconds.append(record["seconds"])
            losses.append(loss)
    return {name: curve for name, curve in curves.items() if len(curve[0]) > 1}


def draw_panel(title: str, curve: Curve, ink: tuple[int, int, int]) -> np.ndarray:
    """One curve, time in seconds against loss (log scale): uint8 BGR [h, w, 3]."""
    width, height = PANEL_PX
    panel = np.full((height, width, 3), 255, np.uint8)
    x, y = np.array(curve[0]), np.log10(np.array(curve[1]))
    x = (x - x.min()) / max(float(np.ptp(x)), 1e-9)
    low, span = float(y.min()), max(float(np.ptp(y)), 1e-9)
    points = np.stack(
        [MARGIN_PX + x * (width - 2 * MARGIN_PX), height - MARGIN_PX - (y - low) / span * (height - 2 * MARGIN_PX)], 1
    )
    cv2.rectangle(panel, (MARGIN_PX, MARGIN_PX), (width - MARGIN_PX, height - MARGIN_PX), (210, 210, 210), 1)
    cv2.polylines(panel, [points.round().astype(np.int32)], False, ink, 2, cv2.LINE_AA)
    labels = (
        (title, 8, 20),
        (f"{10 ** (low + span):.3g}", 4, MARGIN_PX + 4),
        (f"{10**low:.3g}", 4, height - MARGIN_PX),
        (f"{curve[0][0]:.0f} s", MARGIN_PX, height - 14),
        (f"{curve[0][-1]:.0f} s", width - MARGIN_PX - 40, height - 14),
    )
    for text, left, base in labels:
        cv2.putText(panel, text, (left, base), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return panel


def plot(files: Sequence[Path], out: Path, *, columns: int = 3) -> None:
    """Write all curves of files as one picture."""
    panels = [
        draw_panel(f"{file.stem}: {name} loss", curve, INK[index % len(INK)])
        for index, file in enumerate(files)
        for name, curve in read_curves(file).items()
    ]
    blank = np.full_like(panels[0], 255)
    panels += [blank] * (math.ceil(len(panels) / columns) * columns - len(panels))
    rows = [np.concatenate(panels[i : i + columns], 1) for i in range(0, len(panels), columns)]
    cv2.imwrite(str(out), np.concatenate(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot the logs named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.curves", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    plot(options.files, options.out)


if __name__ == "__main__":
    main()
