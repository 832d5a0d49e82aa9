"""How long each stage of a frame's way takes: sliding percentiles. Independent of frames; reads no clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

_WINDOW_FRAMES = 240


class Stage(Enum):
    """The stages of a frame's way through Zoetrope, in order. Values are the names in messages and metrics."""

    RECEIVE = "receive"  # from the first byte received to the last, if the transport reports it
    UNPACK = "unpack"  # decoding the received file
    WAIT = "wait"  # for a free row of the ring
    ENCODE = "encode"  # picture to latents
    DENOISE = "denoise"  # in one tick
    DECODE = "decode"  # latents to picture
    PACK = "pack"  # encoding the answer
    SEND = "send"  # to the transport's buffer
    TOTAL = "total"  # from capture to the answer's last byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """p50 and p95 of the last frames, in milliseconds."""

    p50_ms: float
    p95_ms: float


class StageTimes:
    """The last 240 times of each stage. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[Stage, deque[float]] = {stage: deque(maxlen=_WINDOW_FRAMES) for stage in Stage}

    def add(self, stage: Stage, ms: float) -> None:
        """Add one frame's time in a stage. Negative times (a clock was set) count as 0."""
        with self._lock:
            self._times[stage].append(max(0.0, ms))

    def read(self) -> Mapping[Stage, Percentiles]:
        """Return percentiles of each stage that has any times."""
        with self._lock:
            kept = {stage: sorted(times) for stage, times in self._times.items() if times}
        return {
            stage: Percentiles(p50_ms=round(_rank(times, 0.5), 3), p95_ms=round(_rank(times, 0.95), 3))
            for stage, times in kept.items()
        }


def _rank(times: list[float], share: float) -> float:
    """The nearest-rank percentile of sorted times."""
    return times[min(len(times) - 1, int(share * len(times)))]
