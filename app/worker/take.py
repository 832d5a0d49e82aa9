"""A session's take as the front process sees it: starts and stops it here and in the worker, and feeds the writer.

Shares the session's condition; what says so below is called while that is held. Knows no file format.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from app.media.picture import Picture
from app.takes.records import Stopped
from app.takes.writer import TakeWriter
from pipelines.core.errors import InputError
from pipelines.core.types import Frame

from .messages import StartTake, StopTake, TakeRecords, ToWorker

_START_S = 1.0
_STOP_S = 3.0


class TakeRunsError(InputError):
    """A session has one take at a time."""


class SessionTake:
    """At most one take at a time of the session `name`.

    changed: the session's condition. send: to the worker. live: whether the worker has a stream for the session.
    first_seq: the number of the first input in that worker's mailbox. tell: shows a sentence in the session.
    """

    def __init__(
        self,
        name: str,
        changed: threading.Condition,
        *,
        send: Callable[[ToWorker], None],
        live: Callable[[], bool],
        first_seq: Callable[[], int],
        tell: Callable[[str], None],
    ) -> None:
        self._name, self._changed = name, changed
        self._send, self._live, self._first_seq, self._tell = send, live, first_seq, tell
        self._writer: TakeWriter | None = None
        self._number = 0  # of the newest take: what the worker says of an earlier one comes too late
        self._starting = False
        self._begun = False  # the worker has

    # ---- from any thread; the disk is touched ----

    def start(self, folder: Path, may_grow: Callable[[int], bool]) -> None:
        """Record into `folder`; waits until the worker has begun, at most a second. Raises InputError, OutputError."""
        with self._changed:
            if self._starting or self.recording:
                raise TakeRunsError("This session is being recorded already.", "Stop that take first.")
            self._starting = True
            self._number = number = self._number + 1
        try:
            trouble = partial(self._failed, number)
            writer = TakeWriter(folder, session=self._name, may_grow=may_grow, on_trouble=trouble)
        finally:
            with self._changed:
                self._starting = False
        with self._changed:
            if writer.ended:  # the disk or the quota is full: it has said so, or is about to
                return
            self._writer, self._begun = writer, False
            if self._live():
                self.opened()
                self._changed.wait_for(lambda: self._begun or self._writer is not writer, _START_S)

    def stop(self) -> None:
        """End the take and wait until it is written, at most seconds. Without one nothing happens."""
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

    # ---- while the condition is held; never waits ----

    def opened(self) -> None:
        """The worker has a stream for the session."""
        if self._writer is not None:
            self._send(StartTake(session=self._name, take=self._number, first_seq=self._first_seq()))

    def offered(self, seq: int, captured_ns: int, image: Picture, received: bytes | None) -> None:
        """An input; to be told before the worker can know of it, so that the log has it before its push."""
        if self._writer is not None:
            self._writer.add_input(seq, captured_ns, image, received)

    def passed_over(self, captured_ns: int, received: bytes) -> None:
        """An input that a door dropped before it was decoded."""
        if self._writer is not None:
            self._writer.add_undecoded(captured_ns, received)

    def handed_out(self, frame: Frame, take: int) -> None:
        """A frame, and whose take's it is to the worker."""
        if self._writer is not None and take == self._number:
            self._writer.add_frame(frame.seq, frame.source_seq, frame.image)

    def told(self, message: TakeRecords) -> None:
        """What happened in the worker."""
        if self._writer is None or message.take != self._number:
            return
        self._begun = True
        self._writer.add_records(message.records)
        last = message.records[-1]
        if isinstance(last, Stopped):
            self.ended(last.reason)

    def ended(self, reason: str) -> None:
        """Nothing more will come."""
        if self._writer is not None:
            self._writer.finish(reason)
            self._writer = None

    # ---- from the writer's thread ----

    def _failed(self, number: int, text: str) -> None:
        """The take has ended by itself; the session goes on."""
        with self._changed:
            stale = self._writer is not None and number == self._number
            if stale:
                self._writer = None
            live = self._live()
            self._tell(text)
        if live and stale:  # another take may have begun since
            self._send(StopTake(session=self._name, take=number))
