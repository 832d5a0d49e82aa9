"""Where the time of a frame goes: sliding percentiles for each stage of its way. Knows no frames and no clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

_WINDOW_FRAMES = 240


class Stage(Enum):
    """The stages of a frame's way through Zoetrope, in order; the value is its name in messages and metrics."""

    RECEIVE = "receive"  # from the network's first byte to its last, as far as a transport can tell
    UNPACK = "unpack"  # the picture's codec
    WAIT = "wait"  # for a free row of the ring
    ENCODE = "encode"  # picture to latents
    DENOISE = "denoise"  # one tick of it
    DECODE = "decode"  # latents to picture
    PACK = "pack"  # the answer's codec
    SEND = "send"  # to the transport's buffer
    TOTAL = "total"  # from capture to the answer's last byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Milliseconds that half and 95 % of the last frames took."""

    p50_ms: float
    p95_ms: float


class StageTimes:
    """The last 240 times of each stage. Safe from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[Stage, deque[float]] = {stage: deque(maxlen=_WINDOW_FRAMES) for stage in Stage}

    def add(self, stage: Stage, ms: float) -> None:
        """One frame's time in a stage; times below 0 (a clock that was set) count as 0."""
        with self._lock:
            self._times[stage].append(max(0.0, ms))

    def read(self) -> Mapping[Stage, Percentiles]:
        """Of every stage that has seen a frame."""
        with self._lock:
            kept = {stage: sorted(times) for stage, times in self._times.items() if times}
        return {
            stage: Percentiles(p50_ms=round(_rank(times, 0.5), 3), p95_ms=round(_rank(times, 0.95), 3))
            for stage, times in kept.items()
        }


def _rank(times: list[float], share: float) -> float:
    """The nearest-rank percentile of sorted times."""
    return times[min(len(times) - 1, int(share * len(times)))]
