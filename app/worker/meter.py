"""Frame rate and latency over the last seconds, from the arrival times of frames. Reads no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """frame_rate: frames per second. latency_ms: mean from capture to arrival; None without captured frames."""

    frame_rate: float
    latency_ms: float | None


class Meter:
    """A sliding window over frame arrivals. Not thread-safe."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_ns = int(window_s * 1e9)
        self._arrivals: deque[tuple[int, int | None]] = deque()

    def arrived(self, now_ns: int, captured_ns: int | None) -> None:
        """Count a frame that arrived at `now_ns`. captured_ns: on the same monotonic clock; None if it was not
        captured."""
        self._arrivals.append((now_ns, captured_ns))
        self._forget(now_ns)

    def read(self, now_ns: int) -> MeterReading:
        """Return the rate over the gaps between arrivals in the window; 0 with fewer than two arrivals."""
        self._forget(now_ns)
        if len(self._arrivals) < 2:
            return MeterReading(frame_rate=0.0, latency_ms=None)
        span_ns = self._arrivals[-1][0] - self._arrivals[0][0]
        rate = (len(self._arrivals) - 1) / (span_ns / 1e9) if span_ns else 0.0
        latencies = [now - captured for now, captured in self._arrivals if captured is not None]
        return MeterReading(frame_rate=rate, latency_ms=sum(latencies) / len(latencies) / 1e6 if latencies else None)

    def _forget(self, now_ns: int) -> None:
        while self._arrivals and now_ns - self._arrivals[0][0] > self._window_ns:
            self._arrivals.popleft()
