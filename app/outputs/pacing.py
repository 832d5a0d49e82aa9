"""Turns frames that arrive irregularly into a constant rate: the newest wins, the last one is repeated.

Independent of formats. Used by one writing thread and any number of offering threads.
"""

from __future__ import annotations

import threading
import time
from fractions import Fraction

from pipelines.core.types import Frame, Picture


class PacedFrames:
    """Holds one frame. Ticks are counted from `restart`; a tick that the writer is too late for is skipped."""

    def __init__(self, rate: Fraction) -> None:
        """rate: ticks per second, above 0."""
        self._rate = rate
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._fresh = False
        self._closed = False
        self._origin_s = 0.0
        self._tick = -1
        self.replaced = 0

    def offer(self, frame: Frame) -> None:
        """Replace the previous frame, which counts as replaced if it was never taken."""
        with self._changed:
            if self._closed:
                return
            self.replaced += self._fresh
            self._newest, self._fresh = frame, True
            self._changed.notify_all()

    def close(self) -> None:
        """Wake the writer: no more frames will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def wait(self, seconds: float) -> bool:
        """Sleep; returns True as soon as it is closed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def first(self) -> Picture | None:
        """The newest picture, waiting for one; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest is not None)
            return None if self._closed or self._newest is None else self._newest.image

    def restart(self) -> None:
        """Tick 0 is now."""
        self._origin_s, self._tick = time.monotonic(), -1

    def next(self) -> tuple[int, Picture] | None:
        """The next tick's number and the newest picture at that time; None when closed. After `first`."""
        due = max(self._tick + 1, int((time.monotonic() - self._origin_s) * self._rate))
        self._tick = due
        if self.wait(self._origin_s + float(due / self._rate) - time.monotonic()):
            return None
        with self._changed:
            assert self._newest is not None, "next before first"
            self._fresh = False
            return due, self._newest.image
