"""What a renderer reads: the contract of a source of pictures, its facts, and the limits that all sources share.

Knows no file format; open_source.py picks the reader.
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
"""Largest picture that is decoded (64 megapixels): three bytes a pixel, several copies of it in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """Facts known before the first frame is asked for.

    size: (width, height) of the first picture in pixels, upright. pixel_aspect: width / height of one pixel as shown.
    frame_rate: average, frames a second. time_base: unit of pts and durations, seconds.
    frames: expected number; None when the file does not say. origin_s: the file's own time of pts 0, seconds.
    """

    name: str
    size: tuple[int, int]
    pixel_aspect: float
    frame_rate: Fraction
    time_base: Fraction
    frames: int | None
    origin_s: Fraction
    has_sound: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceFrame:
    """image: [H, W, 3] uint8 RGB, upright. pts, duration: in the source's time base; pts never goes back."""

    index: int
    image: npt.NDArray[np.uint8]
    pts: int
    duration: int


class Source(Protocol):
    """A finite sequence of pictures that can be read again from any frame."""

    @property
    def info(self) -> SourceInfo: ...

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """The frames from number `start` on. Raises SourceBrokenError where the rest cannot be decoded."""
        ...


class SourceBrokenError(InputError):
    """The source cannot be decoded any further. Frames before `frame` were given out."""

    def __init__(self, name: str, frame: int, seconds: float, reason: str) -> None:
        super().__init__(
            f"{name} cannot be decoded beyond frame {frame} ({seconds:.2f} s): {reason}.",
            "What came before was rendered. Repair or download the file again for the rest.",
        )
        self.frame = frame
        self.seconds = seconds


def check_pixels(name: str, width: int, height: int) -> None:
    """Raise InputError when a picture of this size must not be decoded."""
    if width * height > MAX_PICTURE_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels ({width * height / 1e6:.0f} megapixels).",
            f"Scale it down first: at most {MAX_PICTURE_PIXELS / 1e6:.0f} megapixels are read.",
        )
