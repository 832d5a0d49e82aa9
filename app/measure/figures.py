"""The arithmetic of a card: from the arrival times of frames to rates, percentiles and joules a frame.

Independent of engines, clocks and devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One uninterrupted stretch of measuring, in steady state.

    frames: frames that arrived. seconds: from an arrival that is not counted to the last one. gaps_ms: times between
    arrivals of one stream, milliseconds; frames that arrive together count as one arrival. latencies_ms: from a
    picture's push, or a request, to the picture in host memory; empty if that has no meaning.
    joules: energy that the device took meanwhile; None: not measured. peak_memory_mib: so far, since the subject began
    to load, MiB.
    """

    frames: int
    seconds: float
    gaps_ms: tuple[float, ...]
    latencies_ms: tuple[float, ...]
    joules: float | None
    peak_memory_mib: float

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. Times in milliseconds; rounded only for display.

    frames, seconds: of all segments together. segments: how many. fps: frames a second, of all streams together. gap_*:
    the time between frames, or between chunks where a model makes frames in chunks, of one stream; gaps: their number.
    latency_*: from push to picture; None if that has no meaning. joules_per_frame: None if not measured.
    """

    frames: int
    seconds: float
    segments: int
    fps: float
    gaps: int
    gap_ms_p50: float
    gap_ms_p95: float
    gap_ms_p99: float
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    joules_per_frame: float | None
    peak_memory_mib: float


def figures_of(segments: Sequence[Segment]) -> Figures:
    """Return the figures of one or more segments of the same subject. Energy counts only if every segment has it."""
    assert segments
    frames, seconds = sum(segment.frames for segment in segments), sum(segment.seconds for segment in segments)
    gaps = [gap for segment in segments for gap in segment.gaps_ms]
    latencies = [latency for segment in segments for latency in segment.latencies_ms]
    joules = [segment.joules for segment in segments if segment.joules is not None]
    return Figures(
        frames=frames,
        seconds=seconds,
        segments=len(segments),
        fps=frames / seconds,
        gaps=len(gaps),
        gap_ms_p50=percentile(gaps, 50),
        gap_ms_p95=percentile(gaps, 95),
        gap_ms_p99=percentile(gaps, 99),
        latency_ms_p50=percentile(latencies, 50) if latencies else None,
        latency_ms_p95=percentile(latencies, 95) if latencies else None,
        joules_per_frame=sum(joules) / frames if len(joules) == len(segments) else None,
        peak_memory_mib=max(segment.peak_memory_mib for segment in segments),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile with linear interpolation between neighbours (NumPy's default). values: at least one."""
    return float(np.percentile(values, percent))
