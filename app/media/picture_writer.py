"""Writes frames as numbered PNG files, each atomically, so an interrupted folder can be resumed.

Sound and timestamps are not kept.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .writer import Left, writing

_COMPRESSION = [cv2.IMWRITE_PNG_COMPRESSION, 3]


class PictureWriter:
    """frames/000000.png, frames/000001.png, ..."""

    def __init__(self, folder: Path, *, resume: bool, resumable: bool = True) -> None:
        """resume: keep the existing files from 0 up to the first gap; else all numbered files are removed.

        resumable: whether --resume can go on from these files.
        """
        self._resumable = resumable
        self._folder = folder
        self._frames = 0
        with writing(folder):
            folder.mkdir(exist_ok=True)
            if resume:
                while self.file(self._frames).is_file():
                    self._frames += 1
            else:
                for file in numbered_pictures(folder):
                    file.unlink()

    @property
    def frames(self) -> int:
        return self._frames

    def remarks(self) -> list[str]:
        """None."""
        return []

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """pts and duration are ignored."""
        done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _COMPRESSION)
        assert done, "PNG encoding of a uint8 RGB picture cannot fail"
        file = self.file(self._frames)
        unfinished = file.with_suffix(".writing")
        with writing(self._folder, self._left):
            try:
                unfinished.write_bytes(data.tobytes())
                unfinished.replace(file)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise
        self._frames += 1

    def finish(self, *, complete: bool) -> None:
        """Does nothing."""

    def suspend(self) -> None:
        """Does nothing."""

    def abandon(self) -> None:
        """Does nothing."""

    def _left(self) -> Left:
        return Left.stored(self._frames, resumable=self._resumable)

    def file(self, number: int) -> Path:
        """The file of frame `number`, whether it exists or not."""
        return self._folder / f"{number:06d}.png"


def numbered_pictures(folder: Path) -> list[Path]:
    """The files in `folder` that a PictureWriter wrote."""
    return [file for file in folder.glob("*.png") if file.stem.isdigit() and len(file.stem) >= 6]
