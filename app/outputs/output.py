"""The contracts of what is attached to a session: outputs take frames, controllers give changes; how frames reach them.

Knows no format and no transport.
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
"""Takes a frame and the monotonic time in ns at which it arrived; returns at once."""


class OutputPhase(Enum):
    """Where an attachment stands."""

    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"  # the other side is away; it goes on by itself
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReading:
    """done: frames written, or control messages taken. dropped: frames or messages given up. text: for the user.

    file: the name of the file that is written, without its folder; "" for outputs that write none.
    """

    kind: str
    phase: OutputPhase
    done: int
    dropped: int
    text: str
    file: str = ""

    @property
    def over(self) -> bool:
        """Nothing more will happen."""
        return self.phase in (OutputPhase.STOPPED, OutputPhase.FAILED)


class Attachment(Protocol):
    """Anything that starts when it is made, says how it stands, and can be stopped."""

    def read(self) -> OutputReading: ...

    def stop(self) -> None:
        """End it and wait for its end; may take seconds. Stopping twice is fine."""
        ...


class Output(Attachment, Protocol):
    """An attachment that takes frames."""

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        """Take a frame that arrived at a monotonic time in ns. Returns at once, from any thread."""
        ...


def tap(stream: SessionProxy, offer: Offer, over: Callable[[], None]) -> Callable[[], None]:
    """Hand on every frame of a session on the thread that receives it; the result stops that.

    over: called once when the session is over. Both must be quick.
    """
    seen = stream.count
    ended = False

    def wake() -> None:  # the session calls this after each frame, and holds its lock meanwhile
        nonlocal seen, ended
        newest = stream.newest(seen)
        if newest is not None:
            seen, frame = newest
            offer(frame, time.monotonic_ns())
        if stream.over and not ended:
            ended = True
            over()

    forget = stream.listen(wake)
    if stream.over:  # it ended before the listener was there
        wake()
    return forget
