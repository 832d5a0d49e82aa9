"""Measures the clips of bench.cache themselves: what a cache's figures on them have to be read beside.

``python -m bench.cache_floors --json``: of each clip, how much of it stands still, its own warp error and flicker, and
how far the first frame held is from the clip. --sheet FILE.png: one row of frames per clip, to look at. No model runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.cache_clips import CLIPS, clip
from bench.cache_pictures import Size
from bench.command import bench_parser, print_runs
from bench.fidelity import Judge
from pipelines.core.types import Picture

SHEET_FRAMES = (0, 1, 2, 4, 8, 12, 16, 23)


def floors(name: str, frames: int, size: Size, seed: int) -> dict[str, Any]:
    """A row: a clip measured against itself."""
    inputs = clip(name, frames, size, seed)
    row = CLIPS[name]
    found = Judge(inputs, inputs, cuts=row.cuts(frames)).scores(inputs).record()
    own, held = found["inputs"], found["held_fidelity"]
    return {
        "clip": name,
        "repeated_frames": len(row.repeats(frames)),
        "cuts": len(row.cuts(frames)),
        "static_share": found["static_share"],
        "visible_share": found["visible_share"],
        "warp_error": own["warp_error"],
        "flicker": own["flicker"],
        "high_share": own["high_share"],
        "held_psnr_db": held["psnr_db"],
        "held_ms_ssim": held["ms_ssim"],
        "held_gmsd": held["gmsd"],
    }


def contact_sheet(size: Size, seed: int) -> Picture:
    """Eight frames of each clip in a row, with its name: uint8 RGB [H, W, 3]."""
    rows = []
    for name in CLIPS:
        frames = clip(name, SHEET_FRAMES[-1] + 1, size, seed)
        row = np.ascontiguousarray(np.hstack([frames[number] for number in SHEET_FRAMES]))
        cv2.putText(row, name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 0, 0), 1, cv2.LINE_AA)
        rows.append(row)
    return np.vstack(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each clip."""
    parser: argparse.ArgumentParser = bench_parser("cache_floors", __doc__)
    parser.add_argument("--clips", nargs="+", choices=tuple(CLIPS), default=list(CLIPS))
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(192, 192))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="write the contact sheet too")
    options = parser.parse_args(arguments)
    size = (options.size[0], options.size[1])
    runs = [floors(name, options.frames, size, options.seed) for name in options.clips]
    figures = {"bench": "cache_floors", "size_px": list(size), "frames": options.frames, "seed": options.seed}
    print_runs({**figures, "runs": runs}, one_line=options.json)
    if options.sheet and not cv2.imwrite(str(options.sheet), contact_sheet(size, options.seed)[..., ::-1]):
        raise SystemExit(f"{options.sheet} could not be written; give a .png file in an existing folder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
