"""What a renderer reads: the interface of a source of pictures, its properties, and the limits of all sources.

Independent of file formats; open_source.py chooses the reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.core.errors import InputError

MAX_PICTURE_PIXELS = 64 * 2**20
"""Largest picture that is decoded (64 megapixels) unless a caller says less: 3 bytes per pixel, several copies in
memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """Properties that are known before the first frame is read.

    size: (width, height) of the first picture in pixels, upright. pixel_aspect: displayed width / height of one pixel.
    frame_rate: average, frames per second. time_base: unit of pts and durations, seconds. frames: expected number; None
    if unknown. origin_s: the time in the file of pts 0, seconds. notes: sentences for the user: what is not read.
    """

    name: str
    size: tuple[int, int]
    pixel_aspect: float
    frame_rate: Fraction
    time_base: Fraction
    frames: int | None
    origin_s: Fraction
    has_sound: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceFrame:
    """image: [H, W, 3] uint8 RGB, upright. pts, duration: in the source's time base; pts increases."""

    index: int
    image: npt.NDArray[np.uint8]
    pts: int
    duration: int


class Source(Protocol):
    """A finite sequence of pictures that can be reread from any frame."""

    @property
    def info(self) -> SourceInfo: ...

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """The frames from index `start` on. Raises SourceBrokenError if the rest cannot be decoded."""
        ...


class SourceBrokenError(InputError):
    """The source cannot be decoded any further. Frames before `frame` were yielded."""

    def __init__(self, name: str, frame: int, seconds: float, reason: str) -> None:
        super().__init__(
            f"{name} cannot be decoded beyond frame {frame} ({seconds:.2f} s): {reason}.",
            "Everything before was rendered. Repair the file or download it again for the rest.",
        )
        self.frame = frame
        self.seconds = seconds


def check_pixels(name: str, width: int, height: int, max_px: int = MAX_PICTURE_PIXELS) -> None:
    """Raise InputError if a picture of this size is too large to decode."""
    if width * height > max_px:
        raise InputError(
            f"{name} is {width}x{height} pixels ({width * height / 1e6:.0f} megapixels).",
            f"Scale it down first: at most {max_px / 1e6:.0f} megapixels are read.",
        )
