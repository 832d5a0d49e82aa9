"""A bounded queue of frames: when it is full, new frames are rejected.

For recordings, where an accepted frame must not be lost. Independent of files.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from pipelines.core.types import Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A frame and its monotonic arrival time in ns."""

    frame: Frame
    arrived_ns: int


class FrameQueue:
    """First in, first out. Thread-safe."""

    def __init__(self, max_frames: int) -> None:
        self._max = max_frames
        self._changed = threading.Condition()
        self._frames: deque[Arrived] = deque()
        self._closed = False
        self.rejected = 0

    def offer(self, frame: Frame, arrived_ns: int) -> bool:
        """Add a frame. Returns False and counts it as rejected if the queue is full or closed."""
        with self._changed:
            if self._closed or len(self._frames) >= self._max:
                self.rejected += 1
                return False
            self._frames.append(Arrived(frame=frame, arrived_ns=arrived_ns))
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float) -> Arrived | None:
        """Remove and return the oldest frame, waiting for one; None after `timeout_s`, or if closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed, timeout_s)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """Reject further frames; queued ones can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def done(self) -> bool:
        """Whether the queue is closed and empty."""
        with self._changed:
            return self._closed and not self._frames
