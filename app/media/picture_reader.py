"""Reads a folder of pictures, in natural order, as a source of frames.

All headers are read before the first picture is decoded, so that oversized pictures are refused before memory is
allocated for them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipelines.core.errors import InputError

from .source import SourceBrokenError, SourceFrame, SourceInfo, check_pixels

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_DIGITS = re.compile(r"(\d+)")
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_ORIENTATION_TAG = 0x0112


class PictureReader:
    """A source whose frames are picture files, one each."""

    def __init__(self, name: str, files: Sequence[Path], frame_rate: Fraction) -> None:
        """files: in order, at least one. Raises InputError for the first invalid header."""
        assert files
        sizes = [_header_size(file) for file in files]
        self._files = files
        self._info = SourceInfo(
            name=name,
            size=sizes[0],
            pixel_aspect=1.0,
            frame_rate=frame_rate,
            time_base=1 / frame_rate,
            frames=len(files),
            origin_s=Fraction(0),
            has_sound=False,
        )

    @classmethod
    def folder(cls, path: Path, frame_rate: Fraction) -> PictureReader:
        """All pictures directly inside a folder, in natural order: 2.png before 10.png."""
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()), key=natural_key)
        if not files:
            raise InputError(
                f"The folder {path} has no pictures.",
                f"It should contain files ending in {', '.join(sorted(SUFFIXES))}.",
            )
        return cls(str(path), files, frame_rate)

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """The pictures from index `start` on."""
        for index in range(start, len(self._files)):
            file = self._files[index]
            try:
                image = _decode(file)
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow's decoders raise for broken files
                seconds = float(index / self._info.frame_rate)
                raise SourceBrokenError(str(file), index, seconds, str(error)) from error
            yield SourceFrame(index=index, image=image, pts=index, duration=1)


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key that compares numbers in names numerically."""
    parts = _DIGITS.split(path.name.casefold())
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts if part)


def is_picture(path: Path) -> bool:
    """Whether the file has the header of a supported picture format; decodes nothing."""
    try:
        with _opened(path):
            return True
    except InputError:
        return True  # a picture, but too large: the reader reports it
    except OSError:
        return False


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """One picture [H, W, 3] uint8 RGB, upright. Raises InputError if it is not a picture or too large."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Give a picture.")
    _header_size(path)
    try:
        return _decode(path)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} is truncated or corrupt.", "Export it again.") from error


def _opened(path: Path) -> Image.Image:
    """Reads the header only. Raises OSError if it is not a picture, InputError if it is a decompression bomb."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_pixels enforces our lower limit
        try:
            return Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise InputError(f"{path} is too large to be read safely: {error}", "Scale it down first.") from error


def _header_size(path: Path) -> tuple[int, int]:
    try:
        with _opened(path) as picture:
            check_pixels(str(path), picture.width, picture.height)
            if picture.format == "PNG":  # Pillow would decode the picture to look for trailing EXIF data
                return (picture.width, picture.height)
            turned = picture.getexif().get(_ORIENTATION_TAG) in _TRANSPOSED
            return (picture.height, picture.width) if turned else (picture.width, picture.height)
    except (OSError, SyntaxError) as error:
        size = path.stat().st_size
        raise InputError(
            f"{path} ({size} bytes) is not a picture that can be read.", "Remove it or export it again."
        ) from error


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8 RGB, upright; transparency over black; 16-bit grey scaled to 8 bits."""
    with _opened(path) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):
            grey = (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
            return np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
        return np.ascontiguousarray(np.asarray(picture.convert("RGB")))
