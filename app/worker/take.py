"""A session's take in the front process: starts and stops it here and in the worker, and feeds the writer.

Shares the session's condition; some methods, as marked below, are called while it is held. Independent of the file
format.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from app.takes.records import Stopped
from app.takes.writer import TakeWriter
from pipelines.core.errors import InputError
from pipelines.core.types import Frame, Picture

from .messages import StartTake, StopTake, TakeRecords, ToWorker

_START_S = 1.0
_STOP_S = 3.0


class TakeRunsError(InputError):
    """The session is already being recorded."""


class SessionTake:
    """The takes of the session `name`, at most one at a time.

    changed: the session's condition. send: sends to the worker. live: whether the worker has a stream for the session.
    over: whether the session has ended. first_seq: the sequence number of the first input in that worker's mailbox.
    tell: shows a message in the session.
    """

    def __init__(
        self,
        name: str,
        changed: threading.Condition,
        *,
        send: Callable[[ToWorker], None],
        live: Callable[[], bool],
        over: Callable[[], bool],
        first_seq: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        self._name, self._changed = name, changed
        self._send, self._live, self._over, self._first_seq, self._tell = send, live, over, first_seq, tell
        self._writer: TakeWriter | None = None
        self._number = 0  # of the newest take; reports of earlier ones are ignored
        self._starting = False
        self._begun = False  # the worker has begun it

    # ---- from any thread; accesses the disk ----

    def start(self, folder: Path, may_grow: Callable[[], bool]) -> None:
        """Record into `folder`. Waits at most a second for the worker to begin. Raises InputError, OutputError."""
        with self._changed:
            if self._starting or self.recording:
                raise TakeRunsError("This session is already being recorded.", "Stop that take first.")
            self._starting = True
            self._number = number = self._number + 1
        try:
            on_trouble = partial(self._failed, number)
            writer = TakeWriter(folder, session=self._name, may_grow=may_grow, on_trouble=on_trouble)
        finally:
            with self._changed:
                self._starting = False
        with self._changed:
            if writer.ended:  # the disk or the quota is full; on_trouble reports it
                return
            if self._over():  # in the meantime: nobody would end this take
                writer.finish("the session ended")
                return
            self._writer, self._begun = writer, False
            if self._live():
                self.opened()
                self._changed.wait_for(lambda: self._begun or self._writer is not writer, _START_S)

    def stop(self) -> None:
        """End the take, if there is one, and wait until it is written."""
        with self._changed:
            writer = self._writer
            if writer is None:
                return
            if self._live():
                self._send(StopTake(session=self._name, take=self._number))
                self._changed.wait_for(lambda: self._writer is not writer, _STOP_S)
            self._writer = None
        writer.close()

    @property
    def recording(self) -> bool:
        """Whether a take is being written."""
        writer = self._writer
        return writer is not None and not writer.ended

    # ---- called while the condition is held; never block ----

    def opened(self) -> None:
        """The worker has opened a stream for the session."""
        if self._writer is not None:
            self._send(StartTake(session=self._name, take=self._number, first_seq=self._first_seq()))

    def offered(self, seq: int, captured_ns: int, image: Picture, received: bytes | None) -> None:
        """Record an input. Call it before the input is posted, so that the log has it before its push."""
        if self._writer is not None:
            self._writer.add_input(seq, captured_ns, image, received)

    def dropped_undecoded(self, captured_ns: int, received: bytes) -> None:
        """Record an input that was dropped before it was decoded."""
        if self._writer is not None:
            self._writer.add_undecoded(captured_ns, received)

    def handed_out(self, frame: Frame, take: int) -> None:
        """Record a finished frame. take: the number of the take that the worker assigned it to."""
        if self._writer is not None and take == self._number:
            self._writer.add_frame(frame.seq, frame.source_seq, frame.image)

    def add_records(self, message: TakeRecords) -> None:
        """Record what happened in the worker."""
        if self._writer is None or message.take != self._number:
            return
        self._begun = True
        self._writer.add_records(message.records)
        last = message.records[-1]
        if isinstance(last, Stopped):
            self.ended(last.reason)

    def ended(self, reason: str) -> None:
        """Finish the take: nothing more will arrive."""
        if self._writer is not None:
            self._writer.finish(reason)
            self._writer = None

    # ---- from the writer's thread ----

    def _failed(self, number: int, text: str) -> None:
        """Report that a take has ended by itself; the session continues."""
        with self._changed:
            current = self._writer is not None and number == self._number
            if current:
                self._writer = None
            live = self._live()
            self._tell(text)
        if live and current:  # otherwise another take has begun since
            self._send(StopTake(session=self._name, take=number))
