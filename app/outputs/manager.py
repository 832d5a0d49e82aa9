"""The outputs and controllers of one session: attached by name, bounded in number, all stopped with the session.

Hands every frame of the session to every output. One failing output leaves the others running. Knows no protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from app.session.session import Session
from pipelines.core.errors import InputError
from pipelines.core.types import Frame

from .output import Attachment, Offer, Output, OutputPhase, OutputReading, tap

MAX_ATTACHMENTS = 8
_LOOK_NS = 1_000_000_000  # how often failures are looked for, while frames come

Made = TypeVar("Made", bound=Attachment)


class OutputsError(InputError):
    """No output of that name, a name that is taken, or too many."""


class SessionOutputs:
    """What is attached to one session. Safe from several threads.

    `start`, `control`, `stop` and `close` may take seconds: an event loop calls them in an executor.
    """

    def __init__(self, maximum: int = MAX_ATTACHMENTS, tell: Callable[[str], None] = lambda text: None) -> None:
        """most: attachments at once, those that have failed and were not stopped yet included.

        tell: takes a sentence for the user when one has failed, once for each; it must be quick.
        """
        self._max = maximum
        self._tell = tell
        self._told: set[Attachment] = set()
        self._looked_ns = 0
        self._lock = threading.Lock()
        self._attached: dict[str, Attachment | None] = {}  # None: being made
        self._offers: dict[str, Offer] = {}
        self._forget: Callable[[], None] | None = None
        self._closed = False

    @classmethod
    def of(cls, session: Session, maximum: int = MAX_ATTACHMENTS) -> SessionOutputs:
        """For a session: every frame comes by itself, and when it is over everything is stopped."""
        outputs = cls(maximum, session.proxy.notify)
        outputs._forget = tap(session.proxy, outputs.offer, outputs._close_elsewhere)
        return outputs

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        """Hand a frame to every output; returns at once."""
        for offer in tuple(self._offers.values()):
            offer(frame, arrived_ns)
        if arrived_ns - self._looked_ns >= _LOOK_NS:
            self._looked_ns = arrived_ns
            self._look()

    def start(self, name: str, make: Callable[[], Output]) -> OutputReading:
        """Make an output and give it frames. Raises what `make` raises, and OutputsError."""
        self._reserve(name)
        output = self._made(name, make)
        with self._lock:
            if self._attached.get(name) is output:
                self._offers[name] = output.offer
        return output.read()

    def control(self, name: str, make: Callable[[], Attachment]) -> OutputReading:
        """The same for a source of control changes, which takes no frames."""
        self._reserve(name)
        return self._made(name, make).read()

    def stop(self, name: str) -> OutputReading:
        """Stop one, wait for its end, and forget it; returns its last words. Raises OutputsError."""
        with self._lock:
            attachment = self._attached.get(name)
            if attachment is None:
                known = ", ".join(self._attached) or "none"
                raise OutputsError(f"There is no output {name!r}.", f"There are: {known}.")
            del self._attached[name]
            self._offers.pop(name, None)
            self._told.discard(attachment)
        attachment.stop()
        return attachment.read()

    def read(self) -> Mapping[str, OutputReading]:
        """How each stands; a failed one stays until it is stopped."""
        with self._lock:
            attached = dict(self._attached)
        return {name: attachment.read() for name, attachment in attached.items() if attachment is not None}

    def close(self) -> None:
        """Stop all and take no more. Closing twice is fine."""
        with self._lock:
            self._closed = True
            attached = [attachment for attachment in self._attached.values() if attachment is not None]
            self._attached.clear()
            self._offers.clear()
            self._told.clear()
            forget, self._forget = self._forget, None
        if forget is not None:
            forget()
        for attachment in attached:
            attachment.stop()

    def _look(self) -> None:
        """Tell of those that have failed since the last time."""
        with self._lock:
            fresh = [one for one in self._attached.values() if one is not None and one not in self._told]
        for attachment in fresh:
            reading = attachment.read()
            if reading.phase is OutputPhase.FAILED:
                self._told.add(attachment)
                self._tell(f"Output ended ({reading.kind}): {reading.text}")

    def _reserve(self, name: str) -> None:
        with self._lock:
            if self._closed:
                raise OutputsError("The session is over.", "Open a new one.")
            if name in self._attached:
                raise OutputsError(f"There is an output {name!r} already.", "Stop it first.")
            if len(self._attached) >= self._max:
                raise OutputsError(f"{self._max} outputs are in use already.", "Stop one first.")
            self._attached[name] = None

    def _made(self, name: str, make: Callable[[], Made]) -> Made:
        """Made without the lock: it may open devices and sockets."""
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
        """The session is over; whoever says so must not wait for files to be finished."""
        threading.Thread(target=self.close, name="outputs-end").start()
