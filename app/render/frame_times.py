"""Owns when each frame of a render is shown: from the frames that were offered to those that came out.

Independent of engines, files and pictures.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from pipelines.core.types import Frame, StreamInfo

PUSH_TIME_BASE = Fraction(1, 1000)
"""Input frames are pushed with their index as pts: what a frame stage makes between two has an index between theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A frame that the stream took. index: among the frames of the render. pts, duration: in its time base. skipped: by
    the similarity filter. prompt_only: without an input."""

    index: int
    pts: int
    duration: int
    skipped: bool
    prompt_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A frame to write. repeated: the one before it again. pts, duration: in the writer's time base."""

    pts: int
    duration: int
    repeated: bool = False


class FrameTimes(Protocol):
    """Told of what the stream took and gave, in order; says what is to be written."""

    def offered(self, frame: Offered) -> None:
        """The stream took a frame."""
        ...

    def finished(self, frame: Frame) -> Iterator[Shown]:
        """What to write now that `frame` has come out: repetitions before it, then itself."""
        ...

    def rest(self) -> Iterator[Shown]:
        """What to write when no more frames come."""
        ...


def frame_times(info: StreamInfo) -> FrameTimes:
    """Those of a stream that has taken no frame yet, or whose stages leave the number of frames as it is."""
    return OneForEach() if info.stage_rate == 1 else StagedTimes(info)


class OneForEach:
    """Every frame that was taken is shown once, at its time."""

    def __init__(self) -> None:
        self._waiting: deque[Offered] = deque()

    def offered(self, frame: Offered) -> None:
        self._waiting.append(frame)

    def finished(self, frame: Frame) -> Iterator[Shown]:
        while frame.source_seq is not None and self._waiting[0].index < frame.source_seq:
            yield self._shown(repeated=True)
        yield self._shown()

    def rest(self) -> Iterator[Shown]:
        while self._waiting:
            yield self._shown(repeated=True)

    def _shown(self, *, repeated: bool = False) -> Shown:
        frame = self._waiting.popleft()
        return Shown(pts=frame.pts, duration=frame.duration, repeated=repeated)


class StagedTimes:
    """Stages make frames or drop some: each has the time that lies between two frames as its own time says.

    The writer's time base is the frames' own, divided by the numerator of the stages' rate.
    """

    def __init__(self, info: StreamInfo) -> None:
        self._rate, self._generate_rate = info.stage_rate, info.generate_rate
        self._known: deque[Offered] = deque()  # from the one at or before the frame that came out last
        self._repeats: deque[Offered] = deque()
        self._first_generated: int | None = None
        self._last_pts = -1

    def offered(self, frame: Offered) -> None:
        self._known.append(frame)
        if frame.skipped:
            self._repeats.append(frame)
        if frame.prompt_only and self._first_generated is None:
            self._first_generated = frame.index

    def finished(self, frame: Frame) -> Iterator[Shown]:
        position = self._position(frame)
        while self._repeats and self._repeats[0].index < position:
            yield self._at(Fraction(self._repeats.popleft().index), repeated=True)
        if self._repeats and self._repeats[0].index == position:
            self._repeats.popleft()
        yield self._at(position)

    def rest(self) -> Iterator[Shown]:
        while self._repeats:
            yield self._at(Fraction(self._repeats.popleft().index), repeated=True)

    def _position(self, frame: Frame) -> Fraction:
        """Where the frame stands among the indices of those that were offered."""
        at = frame.pts * frame.time_base
        if frame.source_seq is not None:
            return at / PUSH_TIME_BASE
        return at * self._generate_rate + (self._first_generated or 0)

    def _at(self, position: Fraction, *, repeated: bool = False) -> Shown:
        while len(self._known) > 1 and self._known[1].index <= position:
            self._known.popleft()
        before, after = self._known[0], self._known[min(1, len(self._known) - 1)]
        gap = after.pts - before.pts if after is not before else before.duration
        at = (before.pts + (position - before.index) * gap) * self._rate.numerator
        pts = max(round(at), self._last_pts + 1)
        self._last_pts = pts
        duration = before.duration * self._rate.numerator * (1 if repeated else 1 / self._rate)
        return Shown(pts=pts, duration=max(1, math.floor(duration)), repeated=repeated)
