"""Reads a folder of pictures, in natural order, or one picture, as a source of frames.

All headers are read before the first picture is decoded, so that oversized pictures are refused before memory is
allocated for them. What a file holds is picture_file.py's; an animation is animation_reader.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from pipelines.core.errors import InputError
from pipelines.core.types import Picture

from .picture_error import PictureError
from .picture_file import PictureFile
from .picture_kinds import SUFFIXES, PictureKind, kind_of
from .source import MAX_PICTURE_PIXELS, SourceBrokenError, SourceFrame, SourceInfo

_DIGITS = re.compile(r"(\d+)")
_NAMED = 5  # files named in a notice


class PictureReader:
    """A source whose frames are picture files, one each."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        frame_rate: Fraction,
        *,
        max_px: int = MAX_PICTURE_PIXELS,
        notes: tuple[str, ...] = (),
    ) -> None:
        """files: in order, at least one. Raises InputError for the first invalid header, and for an animation."""
        assert files
        headers = [_Header.read(file, max_px) for file in files]
        paged = [file.name for file, header in zip(files, headers, strict=True) if header.pages > 1]
        if paged:
            notes += (f"Only the first page is read of {_listed(paged)}.",)
        self._files = files
        self._max_px = max_px
        self._info = SourceInfo(
            name=name,
            size=headers[0].size,
            pixel_aspect=1.0,
            frame_rate=frame_rate,
            time_base=1 / frame_rate,
            frames=len(files),
            origin_s=Fraction(0),
            has_sound=False,
            notes=notes,
        )

    @classmethod
    def folder(cls, path: Path, frame_rate: Fraction, *, max_px: int = MAX_PICTURE_PIXELS) -> PictureReader:
        """All pictures directly inside a folder, in natural order: 2.png before 10.png.

        Hidden files (.name, as ._name of macOS) are no pictures; others without a picture's suffix are named in a note.
        """
        inside = sorted((entry for entry in path.iterdir() if not entry.name.startswith(".")), key=natural_key)
        files = [entry for entry in inside if entry.suffix.lower() in SUFFIXES and entry.is_file()]
        others = [entry.name for entry in inside if entry not in set(files)]
        skipped = f"Not read, as their names are not those of pictures: {_listed(others)}." if others else ""
        if not files:
            raise InputError(
                f"The folder {path} has no pictures. {skipped}".rstrip(),
                f"It should contain files ending in {', '.join(sorted(SUFFIXES))}.",
            )
        return cls(str(path), files, frame_rate, max_px=max_px, notes=(skipped,) if skipped else ())

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """The pictures from index `start` on."""
        for index in range(start, len(self._files)):
            file = self._files[index]
            try:
                with opened_picture(file, self._max_px) as picture:
                    image = picture.decode()
            except InputError as error:
                seconds = float(index / self._info.frame_rate)
                raise SourceBrokenError(str(file), index, seconds, error.message.rstrip(".")) from error
            yield SourceFrame(index=index, image=image, pts=index, duration=1)


class _Header:
    """What is known of a still picture before it is decoded. size: (width, height) in px, upright."""

    def __init__(self, size: tuple[int, int], pages: int) -> None:
        self.size = size
        self.pages = pages

    @classmethod
    def read(cls, file: Path, max_px: int) -> _Header:
        with opened_picture(file, max_px, whole=False) as picture:  # what is cut off ends the render at its place
            if picture.animated:
                raise InputError(
                    f"{file} is an animation of {picture.pages} frames, not one picture.",
                    "Render it by itself, or move it out of the folder.",
                )
            return cls(picture.size, picture.pages)


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key that compares numbers in names numerically."""
    parts = _DIGITS.split(path.name.casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def picture_kind(path: Path) -> PictureKind | None:
    """The file's picture format by its first bytes; None if it is none. Raises InputError if it cannot be opened."""
    with _opened_file(path) as stream:
        return kind_of(stream)


def is_animated(path: Path, max_px: int) -> bool:
    """Whether a picture file has several frames. Raises InputError."""
    with opened_picture(path, max_px) as picture:
        return picture.animated


def read_picture(path: Path, *, max_px: int = MAX_PICTURE_PIXELS) -> Picture:
    """One picture [H, W, 3] uint8 RGB, upright. Raises InputError if it is not a still picture or too large."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.", "Give a picture.")
    with opened_picture(path, max_px) as picture:
        if picture.animated:
            raise InputError(f"{path} is an animation of {picture.pages} frames.", "Give a still picture.")
        return picture.decode()


@contextmanager
def opened_picture(path: Path, max_px: int, *, whole: bool = True) -> Iterator[PictureFile]:
    """An open picture file. Raises InputError, which names it, for whatever goes wrong with it."""
    with _opened_file(path) as stream:
        if kind_of(stream) is None:
            raise InputError(
                f"{path} ({path.stat().st_size} bytes) is not a picture that can be read.",
                "Remove it or export it again.",
            )
        try:
            with PictureFile.open(stream, max_px=max_px, whole=whole) as picture:
                yield picture
        except PictureError as error:
            raise InputError(f"{path}: {error.message}", error.remedy) from error


@contextmanager
def _opened_file(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}.", "Check its access rights.") from error
    with stream:
        yield stream


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
