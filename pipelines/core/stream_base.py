"""Owns what the streams of all batching engines share: frame counts, output, flush, reset and close.

Independent of what a slot is: the streams of the image and the video engine define that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .errors import InputError
from .slot_frames import SlotFrameQueue
from .stream_log import StreamLog
from .types import Accounting, Frame, ReuseReport


class StreamBase(ABC):
    """See contracts.Stream for the contract of every method."""

    def __init__(
        self,
        number: int,
        log: StreamLog,
        outputs: SlotFrameQueue,
        *,
        tick: Callable[[], None],
        leave: Callable[[int], None],
    ) -> None:
        """tick: runs a tick of the engine. leave: removes stream `number` from the engine."""
        self._number, self._log, self._outputs = number, log, outputs
        self._tick, self._leave = tick, leave
        self._open, self._flushing = True, False
        self._taken = self._skipped = 0

    # -- for the engine ------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a tick would advance anything of this stream."""

    @property
    @abstractmethod
    def _collected(self) -> int:
        """The number of frames that were taken but do not belong to a slot yet."""

    @abstractmethod
    def _pad(self) -> None:
        """Admit the collected frames although they do not fill a slot."""

    @abstractmethod
    def _drop(self) -> None:
        """Release everything in flight except the outputs."""

    @abstractmethod
    def _restart(self) -> None:
        """Start over; called after `_drop`."""

    def check_integrity(self) -> None:
        """Assert that counts and buffers agree. Reads host integers only."""
        assert self.accounting.balanced, self.accounting
        self._outputs.check_integrity()

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def accounting(self) -> Accounting:
        """Exact at all times: taken + made == out + skipped + dropped + in_flight."""
        stages = self._outputs.stages
        return Accounting(
            taken=self._taken,
            out=stages.out,
            skipped=self._skipped,
            in_flight=self._collected + self._outputs.frames,
            made=stages.made,
            dropped=stages.dropped,
        )

    @property
    def reuse(self) -> ReuseReport | None:
        """What was taken over from earlier frames; None: nothing is."""
        return None

    # -- output and endings --------------------------------------------------------------------------------------------

    def pull(self) -> list[Frame]:
        """Return finished frames in input order, oldest first; never waits."""
        return self._outputs.pull()

    def flush(self) -> list[Frame]:
        """Tick the engine until this stream has nothing in flight and return its frames, oldest first. A partial slot
        is padded first; the frame stages are flushed last."""
        self._check_open()
        self._log.event("flush")
        self._pad()
        frames: list[Frame] = []
        self._flushing = True
        try:
            while True:
                frames += self.pull()
                if self.has_work:
                    self._tick()
                elif not self._outputs.wait():
                    return [*frames, *self._outputs.stages.flush()]
        finally:
            self._flushing = False

    def reset(self) -> None:
        """Drop what is in flight and restart the counters; controls stay."""
        self._check_open()
        self._empty()
        self._restart()
        self._log.event("reset")

    def close(self) -> None:
        """Drop what is in flight and leave the engine. May be called more than once."""
        if self._open:
            self._empty()
            self._open = False
            self._leave(self._number)
            self._log.event("close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _empty(self) -> None:
        self._drop()
        self._outputs.clear()
        self._taken = self._skipped = 0

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("The stream is closed.", "Open a new one.")
