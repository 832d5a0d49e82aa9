"""When the frames of a chunk are shown, and when the next chunk is asked for: evenly, in time, never far ahead.

A video model gives its frames a chunk at a time. Each leaves at the pace of its own time stamps; the next chunk is
asked for so that it is there when the last frame has left, as far as earlier chunks tell. Knows times and frames only.
"""

from __future__ import annotations

from collections import deque

from pipelines.core.types import Frame

_MAX_CHUNKS = 2  # that wait here
_MARGIN = 1.25  # of the time that a chunk takes
_MAX_GAP_NS = 1_000_000_000  # between two frames: a longer one is a pause of the source, not a pace
_PATIENCE_NS = 20_000_000  # before a refused request is made again
_IDLE_NS = 1_000_000_000


class Pacer:
    """Finished frames of one session, oldest first. Times are monotonic, in nanoseconds."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Frame, int]] = deque()  # and how long after the one before it it is due
        self._left_ns = 0  # when the frame that left last was due
        self._last: Frame | None = None  # the one that came last
        self._asked_ns: int | None = None
        self._chunk_ns = 0.0  # that a chunk takes, from asking to its frames
        self._retry_ns = 0

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._waiting)

    def add(self, frames: list[Frame], now_ns: int, *, max_frames: int) -> list[Frame]:
        """Take finished frames. Returns those that must go: more than two chunks never wait, and the oldest give way.

        max_frames: of a chunk.
        """
        if frames and self._asked_ns is not None:
            took_ns, self._asked_ns = now_ns - self._asked_ns, None
            self._chunk_ns = took_ns if took_ns > self._chunk_ns else 0.8 * self._chunk_ns + 0.2 * took_ns
        for frame in frames:
            gap_ns = self._gap_ns(frame)
            if not self._waiting:  # it ran dry: frames that come late are counted from now
                self._left_ns = max(self._left_ns, now_ns - gap_ns)
            self._waiting.append((frame, gap_ns))
            self._last = frame
        lost = []
        while len(self._waiting) > _MAX_CHUNKS * max_frames:
            frame, gap_ns = self._waiting.popleft()
            self._left_ns += gap_ns  # the others keep their times
            lost.append(frame)
        return lost

    def _gap_ns(self, frame: Frame) -> int:
        before = self._last
        if before is None or (before.source_seq is None) != (frame.source_seq is None):
            return 0
        gap_s = frame.pts * frame.time_base - before.pts * before.time_base
        return min(max(int(1e9 * gap_s), 0), _MAX_GAP_NS)

    def due(self, now_ns: int) -> Frame | None:
        """The first frame, if its time has come; it stays until `leave`."""
        return self._waiting[0][0] if self._waiting and self._due_ns <= now_ns else None

    @property
    def _due_ns(self) -> int:
        return self._left_ns + self._waiting[0][1]

    def leave(self) -> None:
        """The first frame goes. If it goes late, the following ones keep their times."""
        self._left_ns = self._due_ns
        self._waiting.popleft()

    def _ask_ns(self) -> float:
        """When the next chunk should be asked for, so that it comes when the last frame has left."""
        empty_ns = self._left_ns + sum(gap_ns for _, gap_ns in self._waiting)
        return max(self._retry_ns, empty_ns - _MARGIN * self._chunk_ns)

    def wants_more(self, now_ns: int) -> bool:
        """Whether another chunk should be asked for now."""
        return self._ask_ns() <= now_ns

    def asked(self, now_ns: int) -> None:
        """A chunk was asked for and is under way."""
        self._asked_ns = now_ns

    def refused(self, now_ns: int) -> None:
        """It was asked for and not taken."""
        self._retry_ns = now_ns + _PATIENCE_NS

    def wait_ns(self, now_ns: int, *, asks: bool) -> int:
        """How long nothing is due. asks: whether chunks are asked for."""
        times = [float(self._due_ns)] if self._waiting else []
        times += [self._ask_ns()] if asks else []
        return max(0, int(min(times, default=now_ns + _IDLE_NS)) - now_ns)
