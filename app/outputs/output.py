"""The contracts of a session's attachments (outputs take frames, controllers change controls), and frame delivery.

Independent of formats and transports.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from app.worker.proxy import SessionProxy
from pipelines.core.types import Frame

Offer = Callable[[Frame, int], None]
"""Takes a frame and its monotonic arrival time in ns; does not block."""


class OutputPhase(Enum):
    """The state of an attachment."""

    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"  # the other side is unreachable; it reconnects by itself
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReading:
    """done: frames written, or control messages applied. dropped: frames or messages dropped. text: for the user.

    file: the name of the file being written, without its folder; "" for outputs that write none.
    """

    kind: str
    phase: OutputPhase
    done: int
    dropped: int
    text: str
    file: str = ""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase in (OutputPhase.STOPPED, OutputPhase.FAILED)


class Attachment(Protocol):
    """Starts when it is created, reports its status, and can be stopped."""

    def read(self) -> OutputReading: ...

    def stop(self) -> None:
        """Stop and wait for its end; may take seconds. Idempotent."""
        ...


class Output(Attachment, Protocol):
    """An attachment that takes frames."""

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        """Take a frame and its monotonic arrival time in ns. Does not block; callable from any thread."""
        ...


def tap(stream: SessionProxy, offer: Offer, over: Callable[[], None]) -> Callable[[], None]:
    """Pass on every frame of a session on the thread that receives it; call the result to stop.

    over: called once when the session is over. Both must be quick.
    """
    seen = stream.count
    ended = False

    def wake() -> None:  # the session calls this after each frame, holding its lock
        nonlocal seen, ended
        newest = stream.newest(seen)
        if newest is not None:
            seen, frame = newest
            offer(frame, time.monotonic_ns())
        if stream.over and not ended:
            ended = True
            over()

    forget = stream.listen(wake)
    if stream.over:  # it ended before the listener was registered
        wake()
    return forget
