"""Owns the types that every layer above the caches shares: frames, stream information, accounting.

Independent of models, HTTP and files.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] uint8 RGB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One RGB image with its timestamp.

    image: [H, W, 3] uint8 RGB, C-contiguous; never written to once the frame has been passed on.
    pts, time_base: media time; seconds = pts * time_base.
    seq: position in its own sequence, from 0.
    source_seq: `seq` of the input frame that an output came from; None when generated from the prompt alone.
    captured_ns: when the source was captured, in the server's monotonic time; None when there was no capture.
    """

    image: npt.NDArray[np.uint8]
    pts: int
    time_base: Fraction
    seq: int
    source_seq: int | None = None
    captured_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What a caller needs to feed and read a stream.

    width, height: native size in pixels; `push` takes frames of exactly this size.
    frame_rate: the rate at which prompt-only frames are output, in frames per second.
    frames_per_chunk: frames that the next slot still takes (F); a video's first chunk may be shorter than the others.
    max_frames_per_chunk: the most that any slot of this stream outputs; 0: the same as frames_per_chunk.
    latency_ticks: ticks between the one that admits a slot and the one after which all its frames have been output, at
    the current steps; where frame stages hold frames back, including the ticks of the slots that must follow.
    stages, stage_rate: names of the frame stages, and the frames that they output for each finished one.
    model, dtype, device, backend: what "auto" resolved to, for display.
    engine: "image" or "video": which rows of the control table apply. takes_actions: whether those that move camera
    and subject apply too.
    """

    width: int
    height: int
    frame_rate: Fraction
    frames_per_chunk: int
    latency_ticks: int
    model: str
    dtype: str
    device: str
    backend: str
    max_frames_per_chunk: int = 0
    engine: str = "image"
    takes_actions: bool = False
    stages: tuple[str, ...] = ()
    stage_rate: Fraction = Fraction(1)

    @property
    def generate_rate(self) -> Fraction:
        """Prompt-only frames to request from `generate` per second of output."""
        return self.frame_rate / self.stage_rate

    @property
    def max_frames(self) -> int:
        """Number of frames in the largest chunk."""
        return max(self.max_frames_per_chunk, self.frames_per_chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseReport:
    """What a stream took over from earlier frames.

    frames: admitted so far. hit_rate: share of them that took over anything. saved: share of all picture area that was
    not computed. psnr_db: what that cost: of what was shown where nothing moved, against the next frame that was
    computed as a whole, smoothed over such frames; None before the first. without_windows: why only whole pictures are
    taken over although parts were asked for, as a clause; else "".
    """

    frames: int
    hit_rate: float
    saved: float
    psnr_db: float | None
    without_windows: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Frame counts, exact at all times: taken + made == out + skipped + dropped + in_flight.

    taken: frames that `push` accepted (True) and frames requested from `generate`. A refused push is not counted here:
    the caller keeps or drops that frame and counts it. skipped: accepted, but judged a repeat by the similarity filter.
    out: finished frames returned by `pull` or `flush`. in_flight: everything in between, including what is finished but
    not pulled. made, dropped: frames that frame stages added, and finished ones that they discarded; what a stage holds
    back, its latest `latency_frames` frames, is in flight.
    """

    taken: int
    out: int
    skipped: int
    in_flight: int
    made: int = 0
    dropped: int = 0

    @property
    def balanced(self) -> bool:
        """Whether the frames add up."""
        return self.taken + self.made == self.out + self.skipped + self.dropped + self.in_flight
