"""The one reader of picture files, for every door: what a file says is checked before it is decoded; then it is
upright, sRGB, and black where it is transparent.

Owns the limits of one file. Independent of folders, sockets and sessions. Used on any thread, one at a time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Self

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from pipelines.core.types import Picture

from .picture_colours import to_rgb
from .picture_error import PictureError
from .picture_kinds import (
    BROKEN,
    BROKEN_TOO,
    JPEG,
    MAX_FILE_BYTES,
    PNG,
    TIFF,
    WEBP,
    Bounds,
    PictureKind,
    check_area,
    first_bytes,
    kind_of,
)

Size = tuple[int, int]

SENT_KINDS = (JPEG, PNG, WEBP)
"""What clients may send: the fewest decoders, for files of strangers."""

MAX_SCANS = 64
"""Of a JPEG; encoders make about 10, and each scan of a few bytes costs a pass over all pixels."""

_ORIENTATION_TAG = 0x0112
_TURNS: Mapping[int, Callable[[Picture], Picture]] = MappingProxyType(
    {
        2: lambda stored: stored[:, ::-1],
        3: lambda stored: stored[::-1, ::-1],
        4: lambda stored: stored[::-1],
        5: lambda stored: stored.transpose(1, 0, 2),
        6: lambda stored: np.rot90(stored, -1),
        7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
        8: lambda stored: np.rot90(stored),
    }
)
"""EXIF's orientations: what makes a stored picture upright."""
_SIDEWAYS = (5, 6, 7, 8)
_FASTEST_MS = 10.0  # an animation's frames that are no longer than this last
_USUAL_MS = 100.0  # this long, as browsers show them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnimatedPicture:
    """One frame of an animation. image: [H, W, 3] uint8 RGB. duration_ms: above 0."""

    image: Picture
    duration_ms: float


class PictureFile:
    """An open picture file; its header was read. A context manager."""

    def __init__(self, kind: PictureKind, image: Image.Image, max_px: int, stream: BinaryIO) -> None:
        self.kind = kind
        self._image = image
        self._max_px = max_px
        self._stream = stream
        self._orientation = 1 if kind.turned else _orientation(image)

    @classmethod
    def open(
        cls,
        stream: BinaryIO,
        *,
        max_px: int,
        kinds: tuple[PictureKind, ...] | None = None,
        announced: Size | None = None,
        whole: bool = True,
    ) -> Self:
        """stream: closed by the caller. kinds: those that are taken; None: all. announced: the size that was told in
        advance, stored or upright. whole: refuse a file that is cut off here already, if its format tells.

        Raises PictureError if it is not a picture, is damaged or not of the announced size, or if anything in it has
        more than `max_px` pixels, before anything is allocated for them.
        """
        kind = kind_of(stream)
        if kind is None:
            raise PictureError("The data is not a picture.", f"Send a {_named(kinds or SENT_KINDS)} file.")
        if kinds is not None and kind not in kinds:
            raise PictureError(f"The picture is {kind.name}, not {_named(kinds)}.", f"Send a {_named(kinds)} file.")
        if stream.seek(0, 2) > MAX_FILE_BYTES:
            raise PictureError(
                f"The {kind.name} has more than {MAX_FILE_BYTES >> 20} MiB.", "Save it smaller, or as a video."
            )
        if (declared := kind.declared(first_bytes(stream))) is not None:
            _check_announced(announced, declared, declared[::-1])
            check_area(*declared, max_px)
        stream.seek(0)
        with _reading(kind):
            opened = cls(kind, kind.opened(stream, Bounds(part_px=max_px, whole=whole)), max_px, stream)
        _check_announced(announced, opened._image.size, opened.size)
        check_area(*opened.size, max_px)
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._image.close()

    @property
    def size(self) -> Size:
        """(width, height) in px, upright."""
        width, height = self._image.size
        return (height, width) if self._orientation in _SIDEWAYS else (width, height)

    @property
    def pages(self) -> int:
        """Pictures in the file: the frames of an animation, the pages of a TIFF."""
        return int(getattr(self._image, "n_frames", 1))  # formats of one picture lack it

    @property
    def animated(self) -> bool:
        """It has several frames that are shown one after the other."""
        return self.kind is not TIFF and self.pages > 1

    def decode(self) -> Picture:
        """The picture, or an animation's first frame, as [H, W, 3] uint8 RGB. Raises PictureError."""
        with _reading(self.kind):
            if self.kind is JPEG:
                return self._upright(self._jpeg())
            return self._upright(self._frame(self._image))

    def play(self) -> Iterator[AnimatedPicture]:
        """The frames of an animation, in order. Raises PictureError where they cannot be decoded any further."""
        first = (
            1 if self.kind is PNG and self._image.info.get("default_image") else 0
        )  # a PNG's picture for old viewers
        for number in range(first, self.pages):
            with _reading(self.kind):
                self._image.seek(number)
                image = self._upright(self._frame(self._image))
                duration_ms = float(self._image.info.get("duration") or 0)
            yield AnimatedPicture(image=image, duration_ms=duration_ms if duration_ms > _FASTEST_MS else _USUAL_MS)

    def _frame(self, image: Image.Image) -> Picture:
        check_area(*image.size, self._max_px)
        image.load()
        check_area(*image.size, self._max_px)
        return to_rgb(image)

    def _jpeg(self) -> Picture:
        """By the fastest decoder, if it needs no more than decoding."""
        self._stream.seek(0)
        data = self._stream.read()
        if data.count(b"\xff\xda") > MAX_SCANS:  # these two bytes cannot occur inside a scan's data
            raise PictureError(f"The JPEG has more than {MAX_SCANS} scans.", "Save it as a baseline JPEG.")
        if self._image.mode in ("RGB", "L") and "icc_profile" not in self._image.info:
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"), np.uint8)
        return self._frame(self._image)

    def _upright(self, stored: Picture) -> Picture:
        turn = _TURNS.get(self._orientation)
        return stored if turn is None else np.ascontiguousarray(turn(stored))


def read_still(
    data: bytes,
    *,
    max_px: int,
    kinds: tuple[PictureKind, ...] = SENT_KINDS,
    announced: Size | None = None,
) -> Picture:
    """The still picture in `data`, as [H, W, 3] uint8 RGB. Raises PictureError, for an animation too."""
    with PictureFile.open(io.BytesIO(data), max_px=max_px, kinds=kinds, announced=announced) as opened:
        if opened.animated:
            raise PictureError(f"The {opened.kind.name} is animated.", f"Send a still {opened.kind.name}.")
        return opened.decode()


def _check_announced(announced: Size | None, *found: Size) -> None:
    """found: as stored first, and as shown."""
    if announced is not None and announced not in found:
        raise PictureError(
            f"The picture has {found[0][0]}x{found[0][1]} px, but its header says {announced[0]}x{announced[1]}.",
            "Send its actual size.",
        )


def _named(kinds: tuple[PictureKind, ...]) -> str:
    *others, last = (kind.name for kind in kinds)
    return f"{', '.join(others)} or {last}" if others else last


class _reading:  # noqa: N801
    """Converts what decoders raise to PictureError."""

    def __init__(self, kind: PictureKind) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Image.DecompressionBombError):
            raise PictureError(f"The {self._kind.name} is too large.", "Scale it down first.") from error
        if isinstance(error, (*BROKEN, *BROKEN_TOO)):
            raise PictureError(
                f"The {self._kind.name} is corrupt ({error}).", "Use the complete file, or export it again."
            ) from error


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 if it cannot be read."""
    if not image.info.get("exif"):
        return 1
    with suppress(*BROKEN, *BROKEN_TOO):
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    return 1
