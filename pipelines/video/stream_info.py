"""Owns what a video stream says of itself. Knows no chunk in flight."""

from __future__ import annotations

from fractions import Fraction

from ..controls import Controls
from ..types import StreamInfo
from .core import VideoCore
from .streams import Flight
from .video_controls import number_of_steps


def stream_info(core: VideoCore, flight: Flight, controls: Controls, *, rate: Fraction, frames: int) -> StreamInfo:
    """rate: of prompt-only frames. frames: that the chunk which is filled next still lacks."""
    steps = number_of_steps(core, controls, first=False)
    return StreamInfo(
        width=core.width,
        height=core.height,
        frame_rate=rate,
        frames_per_chunk=frames,
        most_frames_per_chunk=core.most_frames,
        latency_ticks=flight.latency_ticks(steps),
        model=core.model.name,
        dtype=str(core.model.dtype).removeprefix("torch."),
        device=str(core.model.device),
        backend=core.backend.name,
        engine="video",
        takes_actions=core.model.takes_actions,
    )
