"""The contract of what is measured: it says what it is, and is measured one stretch at a time. Independent of what it
is and of the process that it runs in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .card import Machine, Setup
from .figures import Segment

Say = Callable[[str], object]
"""Receives a sentence on what is happening, for a person who waits."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The process that makes a subject. say: tells what happens. started_s: time.time() when it was started."""

    say: Say
    started_s: float

    @property
    def elapsed_s(self) -> float:
        """Seconds since the process was started."""
        return time.time() - self.started_s

    def noting(self, notices: list[str]) -> Say:
        """Return a function that says what it receives and keeps it in `notices`."""

        def note(text: str) -> None:
            notices.append(text)
            self.say(text)

        return note


class Subject(Protocol):
    """Something that makes frames, loaded and warm. Whoever makes it excludes loading and warming up."""

    @property
    def machine(self) -> Machine: ...

    @property
    def setup(self) -> Setup: ...

    def measure(self, seconds: float) -> Segment:
        """Run in steady state for that long, until the next arrival; then stop, ready to go on."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


MakeSubject = Callable[[Begun], Subject]
"""Loads and warms up a subject. It must be picklable: a function of a module, or functools.partial of one."""
