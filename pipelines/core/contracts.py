"""The contracts of an engine and of a stream: what the image engine, the video engine and the identity engine offer.

Knows no model, no HTTP and no files.
"""

from __future__ import annotations

from fractions import Fraction
from types import TracebackType
from typing import Protocol, Self

from .controls import Control, Controls
from .tick_log import TickLog
from .types import Accounting, Frame, StreamInfo


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
        """Run the engine until everything of this stream is finished and return it, oldest first; frame stages give
        what they hold."""
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

    def check_integrity(self) -> None:
        """Between ticks: assert that counts, buffers and storage agree. Cheap; waits for nothing."""
        ...

    def close(self) -> None: ...
