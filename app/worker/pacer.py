"""Paces the frames of a chunk evenly, and decides when the next chunk is requested: in time, but never far ahead.

A video model produces its frames a chunk at a time. They are released at the pace of their time stamps; the next chunk
is requested so that it arrives when the last frame has been released, judging by how long earlier chunks took.
Independent of streams and clocks: callers pass the time.
"""

from __future__ import annotations

from collections import deque

from pipelines.core.types import Frame

_MAX_CHUNKS = 2  # waiting here
_MARGIN = 1.25  # times the duration of a request
_MAX_GAP_NS = 1_000_000_000  # between two frames: a longer gap is a pause of the source, not its pace
_RETRY_NS = 20_000_000  # between a refused request and the next
_IDLE_NS = 1_000_000_000


class Pacer:
    """Finished frames of one session, oldest first. Times are monotonic, in nanoseconds."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Frame, int]] = deque()  # with the gap after the preceding frame
        self._released_ns = 0  # when the last released frame was due
        self._last: Frame | None = None  # the last one added
        self._requested_ns: int | None = None
        self._chunk_ns = 0.0  # from a request to its frames
        self._retry_ns = 0

    def __len__(self) -> int:
        """Number of waiting frames."""
        return len(self._waiting)

    def add(self, frames: list[Frame], now_ns: int, *, max_frames: int) -> list[Frame]:
        """Add finished frames. Returns the dropped ones: at most two chunks wait, and the oldest frames are dropped
        first.

        max_frames: of a chunk.
        """
        if frames and self._requested_ns is not None:
            took_ns, self._requested_ns = now_ns - self._requested_ns, None
            self._chunk_ns = took_ns if took_ns > self._chunk_ns else 0.8 * self._chunk_ns + 0.2 * took_ns
        for frame in frames:
            gap_ns = self._gap_ns(frame)
            if not self._waiting:  # underrun: late frames are timed from now
                self._released_ns = max(self._released_ns, now_ns - gap_ns)
            self._waiting.append((frame, gap_ns))
            self._last = frame
        dropped = []
        while len(self._waiting) > _MAX_CHUNKS * max_frames:
            frame, gap_ns = self._waiting.popleft()
            self._released_ns += gap_ns  # the others keep their times
            dropped.append(frame)
        return dropped

    def _gap_ns(self, frame: Frame) -> int:
        before = self._last
        if before is None or (before.source_seq is None) != (frame.source_seq is None):
            return 0
        gap_s = frame.pts * frame.time_base - before.pts * before.time_base
        return min(max(int(1e9 * gap_s), 0), _MAX_GAP_NS)

    def due(self, now_ns: int) -> Frame | None:
        """Return the first frame if it is due. It keeps waiting until `release`."""
        return self._waiting[0][0] if self._waiting and self._due_ns <= now_ns else None

    @property
    def _due_ns(self) -> int:
        return self._released_ns + self._waiting[0][1]

    def release(self) -> None:
        """Remove the first frame. If that happens late, the following ones keep their times."""
        self._released_ns = self._due_ns
        self._waiting.popleft()

    def _request_ns(self) -> float:
        """When to request the next chunk so that it arrives as the last frame is released."""
        empty_ns = self._released_ns + sum(gap_ns for _, gap_ns in self._waiting)
        return max(self._retry_ns, empty_ns - _MARGIN * self._chunk_ns)

    def should_request(self, now_ns: int) -> bool:
        """Whether another chunk should be requested now."""
        return self._request_ns() <= now_ns

    def requested(self, now_ns: int) -> None:
        """Note that a chunk was requested and is in flight."""
        self._requested_ns = now_ns

    def refused(self, now_ns: int) -> None:
        """Note that a request was refused; the next follows 20 ms later."""
        self._retry_ns = now_ns + _RETRY_NS

    def wait_ns(self, now_ns: int, *, requests: bool) -> int:
        """How long nothing is due, at most a second if nothing waits. requests: whether chunks are requested."""
        times = [float(self._due_ns)] if self._waiting else []
        times += [self._request_ns()] if requests else []
        return max(0, int(min(times, default=now_ns + _IDLE_NS)) - now_ns)
