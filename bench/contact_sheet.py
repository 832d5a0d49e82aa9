"""Frames of videos side by side in one picture: `python -m bench.contact_sheet SHEET.jpg VIDEO... [--columns N]`.

One row per video, its frames evenly spaced from first to last. For visual inspection, not for measuring.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from pipelines.core.types import Picture


def sampled_frames(path: Path, count: int, height_px: int) -> list[Picture]:
    """`count` RGB frames [height_px, w, 3] of a video, evenly spaced; decodes it twice to save memory."""
    with av.open(str(path)) as container:
        total = sum(1 for _ in container.decode(video=0))
    sampled = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
    frames: list[Picture] = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in sampled:
                width_px = round(frame.width * height_px / frame.height)
                picture = cv2.resize(
                    frame.to_ndarray(format="rgb24"), (width_px, height_px), interpolation=cv2.INTER_AREA
                )
                frames.append(np.asarray(picture, dtype=np.uint8))
    return frames


def contact_sheet(paths: Sequence[Path], columns: int, height_px: int) -> Picture:
    """Rows of frames [H, W, 3]; narrower rows are padded with black on the right."""
    rows = [np.hstack(sampled_frames(path, columns, height_px)) for path in paths]
    width_px = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, width_px - row.shape[1]), (0, 0))) for row in rows])


def main() -> None:
    """Write the sheet, as JPEG or PNG by its suffix."""
    parser = argparse.ArgumentParser(prog="python -m bench.contact_sheet", description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--height", type=int, default=144)
    options = parser.parse_args()
    sheet = contact_sheet(options.videos, options.columns, options.height)
    if not cv2.imwrite(str(options.sheet), sheet[..., ::-1]):
        raise SystemExit(f"{options.sheet} could not be written; give a .jpg or .png file in an existing folder.")


if __name__ == "__main__":
    main()
