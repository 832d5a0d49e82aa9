"""Reads an animated picture (GIF, PNG, WebP) as a source of frames, each with the time that the file gives it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from pipelines.core.errors import InputError

from .picture_reader import opened_picture
from .source import MAX_PICTURE_PIXELS, SourceBrokenError, SourceFrame, SourceInfo

_TIME_BASE = Fraction(1, 1000)


class AnimationReader:
    """A source of an animation's frames, played once."""

    def __init__(self, path: Path, *, max_px: int = MAX_PICTURE_PIXELS) -> None:
        """Decodes every frame once, to know how long they last. Raises InputError if the first one is damaged."""
        self._path = path
        self._max_px = max_px
        with opened_picture(path, max_px) as picture:
            size = picture.size
        durations: list[int] = []
        try:
            durations.extend(frame.duration for frame in self._played())
        except SourceBrokenError:
            if not durations:
                raise
        self._info = SourceInfo(
            name=str(path),
            size=size,
            pixel_aspect=1.0,
            frame_rate=(len(durations) / (sum(durations) * _TIME_BASE)).limit_denominator(1001),
            time_base=_TIME_BASE,
            frames=len(durations),
            origin_s=Fraction(0),
            has_sound=False,
        )

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """The frames from index `start` on; those before it are decoded and discarded."""
        for frame in self._played():
            if frame.index >= start:
                yield frame

    def _played(self) -> Iterator[SourceFrame]:
        pts = index = 0
        try:
            with opened_picture(self._path, self._max_px) as picture:
                for frame in picture.play():
                    duration = max(1, round(frame.duration_ms))
                    yield SourceFrame(index=index, image=frame.image, pts=pts, duration=duration)
                    pts, index = pts + duration, index + 1
        except InputError as error:
            reason = error.message.rstrip(".")
            raise SourceBrokenError(str(self._path), index, float(pts * _TIME_BASE), reason) from error
