"""The nouns that every layer above the caches shares: frames, stream facts, accounting, engine and stream contracts.

Knows no model, no HTTP and no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .controls import Control, Controls
    from .ticklog import TickLog


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
    frame_rate: the rate at which prompt-only frames are stamped, in frames a second.
    frames_per_chunk: frames that the next slot still takes (F); a video's first chunk may be shorter than the others.
    most_frames_per_chunk: the most that any slot of this stream gives; 0: as frames_per_chunk.
    latency_ticks: ticks between the one that admits a slot and the one that finishes it, at the current steps.
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
    most_frames_per_chunk: int = 0
    engine: str = "image"
    takes_actions: bool = False

    @property
    def most_frames(self) -> int:
        """Frames of the largest chunk."""
        return max(self.most_frames_per_chunk, self.frames_per_chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """Exact at any moment: taken == out + skipped + in_flight.

    taken counts frames that `push` accepted (True) and frames asked of `generate`; a refused push is not counted here:
    the caller keeps or drops that frame and counts it. skipped: accepted, but judged a repeat by the similarity filter.
    out: finished frames handed over by `pull` or `flush`. in_flight: everything between, finished but not pulled
    included.
    """

    taken: int
    out: int
    skipped: int
    in_flight: int


class Propagation(Enum):
    """When a changed control is felt. Shown on the page and measured by a test."""

    NEXT_TICK = "next tick"  # read at every step by all slots of the stream
    NEXT_SLOT = "next slot"  # fixed at a slot's birth: glides in over the depth of the ring
    NEXT_CHUNK = "next chunk"  # video models: from the next chunk on
    REOPEN = "reopen"  # a new stream is opened (model, size)


class Stream(Protocol):
    """A handle on one sequence of frames inside an engine; also a context manager."""

    @property
    def info(self) -> StreamInfo: ...
    @property
    def accounting(self) -> Accounting: ...
    @property
    def busy(self) -> bool:
        """Whether a tick would bring something on, or finished frames are on their way. A chunk that is not full, and
        what is in flight in a paused stream, wait without being busy."""
        ...

    @property
    def controls(self) -> Controls: ...

    def push(self, frame: Frame) -> bool:
        """Offer an input frame. False: no free slot; the caller keeps or drops the frame and counts it."""
        ...

    def generate(self, frames: int = 1) -> bool:
        """The same without an input, from the prompt alone."""
        ...

    def apply(self, control: Control) -> int:
        """The one way to change anything; returns the number of the tick from which it holds."""
        ...

    def pull(self) -> list[Frame]:
        """Finished frames, oldest first; never waits for a tick."""
        ...

    def flush(self) -> list[Frame]:
        """Run the engine until everything of this stream is finished and return it, oldest first."""
        ...

    def reset(self) -> None:
        """Drop what is in flight (counted as out of the accounting's scope: counters restart at 0)."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """Owns one model on one device: weights, ring, caches, batch."""

    @property
    def log(self) -> TickLog:
        """What happened, tick by tick."""
        ...

    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> Stream:
        """A new stream with the model's defaults and then `control`.

        frame_rate: prompt-only frames are stamped at it; None: the model's own (24 for images).
        """
        ...

    def tick(self) -> None:
        """Advance every slot of every open stream by one step, as one batch."""
        ...

    def close(self) -> None: ...
