"""The contract of what is measured: it says what it is, and is measured one stretch at a time. Independent of what it
is and of the process that it runs in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .card import Machine, Setup
from .figures import Segment

Say = Callable[[str], object]
"""Receives a sentence on what is happening, for a person who waits."""


class Subject(Protocol):
    """Something that makes frames, loaded and warm. Whoever makes it excludes loading and warming up."""

    @property
    def machine(self) -> Machine: ...

    @property
    def setup(self) -> Setup: ...

    def measure(self, seconds: float) -> Segment:
        """Run in steady state for about that long, and at least until two arrivals; then stop, ready to go on."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


MakeSubject = Callable[[Say, float], Subject]
"""Loads and warms up a subject. Takes where to say what happens, and the time (time.time) when its process was
started. It must be picklable: a function of a module, or functools.partial of one."""
