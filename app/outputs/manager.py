"""The outputs and controllers of one session: attached by name, limited in number, all stopped with the session.

Passes every frame of the session to every output. A failing output does not affect the others. Independent of
protocols.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from app.session.session import Session
from pipelines.core.errors import InputError
from pipelines.core.types import Frame

from .output import Attachment, Offer, Output, OutputPhase, OutputReading, tap

MAX_ATTACHMENTS = 8
_CHECK_NS = 1_000_000_000  # interval of checks for failed outputs, while frames arrive

Made = TypeVar("Made", bound=Attachment)


class OutputsError(InputError):
    """No output with that name, the name is taken, or too many outputs."""


class SessionOutputs:
    """The attachments of one session. Thread-safe.

    `start`, `control`, `stop` and `close` may block for seconds: call them in an executor, not on an event loop.
    """

    def __init__(self, maximum: int = MAX_ATTACHMENTS, notify: Callable[[str], None] = lambda text: None) -> None:
        """maximum: attachments at once, including failed ones that were not stopped yet.

        notify: called once for each that fails, with a message for the user; it must be quick.
        """
        self._max = maximum
        self._notify = notify
        self._reported: set[Attachment] = set()
        self._checked_ns = 0
        self._lock = threading.Lock()
        self._attached: dict[str, Attachment | None] = {}  # None: being created
        self._offers: dict[str, Offer] = {}
        self._forget: Callable[[], None] | None = None
        self._closed = False

    @classmethod
    def of(cls, session: Session, maximum: int = MAX_ATTACHMENTS) -> SessionOutputs:
        """The outputs of a session, which receive its frames and stop when it is over."""
        outputs = cls(maximum, session.proxy.notify)
        outputs._forget = tap(session.proxy, outputs.offer, outputs._close_elsewhere)
        return outputs

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        """Pass a frame to every output; does not block."""
        for offer in tuple(self._offers.values()):
            offer(frame, arrived_ns)
        if arrived_ns - self._checked_ns >= _CHECK_NS:
            self._checked_ns = arrived_ns
            self._report_failures()

    def start(self, name: str, make: Callable[[], Output]) -> OutputReading:
        """Create an output and feed it frames. Raises what `make` raises, and OutputsError."""
        self._reserve(name)
        output = self._create(name, make)
        with self._lock:
            if self._attached.get(name) is output:
                self._offers[name] = output.offer
        return output.read()

    def control(self, name: str, make: Callable[[], Attachment]) -> OutputReading:
        """As `start`, for a source of control changes, which takes no frames."""
        self._reserve(name)
        return self._create(name, make).read()

    def stop(self, name: str) -> OutputReading:
        """Stop one, wait for its end, and remove it; returns its final status. Raises OutputsError."""
        with self._lock:
            attachment = self._attached.get(name)
            if attachment is None:
                names = ", ".join(self._attached) or "none"
                raise OutputsError(f"There is no output {name!r}.", f"Existing outputs: {names}.")
            del self._attached[name]
            self._offers.pop(name, None)
            self._reported.discard(attachment)
        attachment.stop()
        return attachment.read()

    def read(self) -> Mapping[str, OutputReading]:
        """The status of each; a failed one stays until it is stopped."""
        with self._lock:
            attached = dict(self._attached)
        return {name: attachment.read() for name, attachment in attached.items() if attachment is not None}

    def close(self) -> None:
        """Stop all at once and wait for all; accept no more. Idempotent."""
        with self._lock:
            self._closed = True
            attached = [attachment for attachment in self._attached.values() if attachment is not None]
            self._attached.clear()
            self._offers.clear()
            self._reported.clear()
            forget, self._forget = self._forget, None
        if forget is not None:
            forget()
        at_once([attachment.stop for attachment in attached])

    def _report_failures(self) -> None:
        """Report the attachments that have failed since the last check."""
        with self._lock:
            unreported = [one for one in self._attached.values() if one is not None and one not in self._reported]
        for attachment in unreported:
            reading = attachment.read()
            if reading.phase is OutputPhase.FAILED:
                self._reported.add(attachment)
                self._notify(f"Output ended ({reading.kind}): {reading.text}")

    def _reserve(self, name: str) -> None:
        with self._lock:
            if self._closed:
                raise OutputsError("The session is over.", "Open a new one.")
            if name in self._attached:
                raise OutputsError(f"There is already an output {name!r}.", "Stop it first.")
            if len(self._attached) >= self._max:
                raise OutputsError(f"{self._max} outputs are already in use.", "Stop one first.")
            self._attached[name] = None

    def _create(self, name: str, make: Callable[[], Made]) -> Made:
        """Call `make` without the lock: it may open devices and sockets."""
        made: Made | None = None
        try:
            made = make()
        finally:
            with self._lock:
                late = self._closed
                if not late:
                    if made is None:
                        del self._attached[name]
                    else:
                        self._attached[name] = made
        if late:
            made.stop()
        return made

    def _close_elsewhere(self) -> None:
        """The session is over; close on another thread, as the caller must not wait for files to be finished."""
        threading.Thread(target=self.close, name="outputs-end").start()


def at_once(stops: Sequence[Callable[[], None]]) -> None:
    """Call each on a thread of its own and wait for all: each may wait for a server that is silent. One that fails is
    reported by its thread's hook and holds up no other."""
    threads = [threading.Thread(target=stop, name="outputs-stop") for stop in stops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
