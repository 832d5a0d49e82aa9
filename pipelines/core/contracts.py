"""Owns the contracts of an engine and of a stream, which the image, the video and the identity engine implement.

Independent of models, HTTP and files.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self

from .controls import Control, Controls
from .preparation import Preparation
from .tick_log import TickLog
from .types import Accounting, Frame, ReuseReport, StreamInfo

Notify = Callable[[str], object]
"""Receives a sentence that the user should see."""


class Stream(Protocol):
    """A handle to one sequence of frames inside an engine; also a context manager."""

    @property
    def info(self) -> StreamInfo: ...
    @property
    def accounting(self) -> Accounting: ...
    @property
    def busy(self) -> bool:
        """Whether a tick would advance anything, or finished frames are on their way. Neither a partial chunk nor what
        is in flight in a paused stream makes a stream busy."""
        ...

    @property
    def controls(self) -> Controls: ...

    @property
    def reuse(self) -> ReuseReport | None:
        """What was taken over from earlier frames; None: nothing is."""
        ...

    def push(self, frame: Frame) -> bool:
        """Offer an input frame. False: no free slot; the caller keeps or drops the frame and counts it."""
        ...

    def generate(self, frames: int = 1) -> bool:
        """Request frames from the prompt alone, without input: all of them or, when it returns False, none."""
        ...

    def apply(self, control: Control) -> int:
        """Change controls, the only way to do so. Returns the number of the tick from which the change holds."""
        ...

    def pull(self) -> list[Frame]:
        """Return finished frames, oldest first; never waits for a tick."""
        ...

    def flush(self) -> list[Frame]:
        """Run the engine until everything of this stream is finished and return it, oldest first; frame stages are
        flushed too."""
        ...

    def reset(self) -> None:
        """Drop what is in flight; counters restart at 0, so the dropped frames appear in no count."""
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
        """The record of what happened, tick by tick."""
        ...

    @property
    def preparation(self) -> Preparation:
        """What makes faster forms of the engine's parts while it runs."""
        ...

    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> Stream:
        """Open a stream with the model's defaults and then `control` applied.

        frame_rate: of prompt-only frames, in frames per second; None: the model's own (24 for images).
        """
        ...

    def tick(self) -> None:
        """Advance every slot of every open stream by one step, as one batch."""
        ...

    def check_integrity(self) -> None:
        """Assert, between ticks, that counts, buffers and storage agree. Cheap; waits for nothing."""
        ...

    def close(self) -> None: ...
