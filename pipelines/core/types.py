"""The nouns that every layer above the caches shares: frames, stream facts, accounting.

Knows no model, no HTTP and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One RGB image with its place in time.

    image: [H, W, 3] uint8 RGB, C-contiguous; owners never write to it after handing it on.
    pts, time_base: media time; seconds = pts * time_base.
    seq: position in its own sequence, from 0.
    source_seq: `seq` of the input frame that an output came from; None when generated from the prompt alone.
    captured_ns: monotonic time of the server at which the source was captured; None when there was no capture.
    """

    image: npt.NDArray[np.uint8]
    pts: int
    time_base: Fraction
    seq: int
    source_seq: int | None = None
    captured_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What a caller must know to feed and read a stream.

    width, height: native size in pixels; `push` takes frames of exactly this size.
    frame_rate: the rate of prompt-only frames as they are handed over, in frames a second.
    frames_per_chunk: frames that the next slot still takes (F); a video's first chunk may be shorter than the others.
    max_frames_per_chunk: the most that any slot of this stream gives; 0: as frames_per_chunk.
    latency_ticks: ticks between the one that admits a slot and the one after which all its frames have been handed
    over, at the current steps; where frame stages hold frames back, with the slots that must follow.
    stages, stage_rate: names of the frame stages, and the frames that they hand over for each finished one.
    model, dtype, device, backend: what "auto" chose, to be shown.
    engine: "image" or "video": which rows of the control table mean anything. takes_actions: also those that move
    camera and subject.
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
        """Prompt-only frames to ask of `generate` for each second that is handed over."""
        return self.frame_rate / self.stage_rate

    @property
    def max_frames(self) -> int:
        """Frames of the largest chunk."""
        return max(self.max_frames_per_chunk, self.frames_per_chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Exact at any moment: taken + made == out + skipped + dropped + in_flight.

    taken counts frames that `push` accepted (True) and frames asked of `generate`; a refused push is not counted here:
    the caller keeps or drops that frame and counts it. skipped: accepted, but judged a repeat by the similarity filter.
    out: finished frames handed over by `pull` or `flush`. in_flight: everything between, finished but not pulled
    included. made, dropped: frames that frame stages added, and finished ones that ended there; a stage has in flight
    what it holds back, its latest `latency_frames` frames.
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
