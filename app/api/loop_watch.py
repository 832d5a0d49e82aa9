"""Measures how long each callback of an event loop runs, in wall time and in the thread's CPU time.

asyncio has no hook for this outside its debug mode, which is too slow to be always on: every callback, task step and
reader of a loop runs in `asyncio.Handle._run`, which is patched while a watch runs. It costs a few microseconds per
callback. Wall time includes waiting for the GIL or a core; CPU time is the loop's own work.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

BLOCKED_MS = 5.0
"""Longer callbacks are counted as blocking."""

_WINDOW_S = 60
_HOOK = "_run"  # of asyncio.Handle, in CPython 3.11 to 3.14
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopReading:
    """max_s, max_cpu_s: longest callback of the last 60 s. blocked*: callbacks over BLOCKED_MS since the start.

    callbacks: all since the start. worst: the callback with the most CPU time since the start.
    """

    max_s: float = 0.0
    max_cpu_s: float = 0.0
    blocked: int = 0
    blocked_cpu: int = 0
    callbacks: int = 0
    worst: str = ""


@dataclass(slots=True)
class _Second:
    """The longest callback of one second."""

    second: int
    wall_ns: int = 0
    cpu_ns: int = 0


class LoopWatch:
    """Watches one event loop from `start` to `stop`; also a context manager. Several loops can be watched at once.

    on_blocked: called on the loop with a message for each callback over BLOCKED_MS.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_blocked: Callable[[str], None] | None = None) -> None:
        self._loop = loop
        self._on_blocked = on_blocked
        self._seconds: deque[_Second] = deque()
        self._callbacks = self._blocked = self._blocked_cpu = 0
        self._worst_ns, self._worst = 0, ""
        self._lock = threading.Lock()  # taken by the loop once a second, and by readers
        self._original: Callable[[asyncio.Handle], None] | None = None
        self._repositionment: Callable[[asyncio.Handle], None] | None = None

    def start(self) -> None:
        """Start measuring."""
        assert self._original is None, "started twice"
        original: Callable[[asyncio.Handle], None] = getattr(asyncio.Handle, _HOOK)
        loop, wall_clock, cpu_clock, measured = self._loop, time.perf_counter_ns, time.thread_time_ns, self._measured
        cpu_before_ns: int | None = (
            None  # at the end of the last callback; the clock is a system call, so it is read once per callback
        )

        def run(handle: asyncio.Handle) -> None:
            nonlocal cpu_before_ns
            if handle._loop is not loop:  # type: ignore[attr-defined]
                original(handle)
                return
            callback = handle._callback  # type: ignore[attr-defined]  # gone afterwards if it was cancelled
            if cpu_before_ns is None:
                cpu_before_ns = cpu_clock()
            wall_ns = wall_clock()
            try:
                original(handle)
            finally:
                wall_ns, cpu_ns = wall_clock() - wall_ns, cpu_clock()
                measured(callback, wall_ns, cpu_ns - cpu_before_ns)
                cpu_before_ns = cpu_ns

        self._original, self._repositionment = original, run
        setattr(asyncio.Handle, _HOOK, run)

    def stop(self) -> None:
        """Stop measuring. Idempotent. Watches must be stopped in reverse order of starting."""
        if self._original is None:
            return
        assert getattr(asyncio.Handle, _HOOK) is self._repositionment, "another watch was started since"
        setattr(asyncio.Handle, _HOOK, self._original)
        self._original = self._repositionment = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def read(self) -> LoopReading:
        """The current figures. Thread-safe."""
        oldest = int(time.monotonic()) - _WINDOW_S
        with self._lock:
            recent = [second for second in self._seconds if second.second > oldest]
        return LoopReading(
            max_s=max((second.wall_ns for second in recent), default=0) / 1e9,
            max_cpu_s=max((second.cpu_ns for second in recent), default=0) / 1e9,
            blocked=self._blocked,
            blocked_cpu=self._blocked_cpu,
            callbacks=self._callbacks,
            worst=self._worst,
        )

    def _measured(self, callback: object, wall_ns: int, cpu_ns: int) -> None:
        self._callbacks += 1
        now = int(time.monotonic())
        if not self._seconds or self._seconds[-1].second != now:
            with self._lock:
                self._seconds.append(_Second(now))
                while self._seconds[0].second <= now - _WINDOW_S:
                    self._seconds.popleft()
        longest = self._seconds[-1]
        longest.wall_ns = max(longest.wall_ns, wall_ns)
        longest.cpu_ns = max(longest.cpu_ns, cpu_ns)
        if wall_ns > BLOCKED_MS * 1e6:
            self._note(callback, wall_ns, cpu_ns)

    def _note(self, callback: object, wall_ns: int, cpu_ns: int) -> None:
        """Count a callback that took too long."""
        self._blocked += 1
        self._blocked_cpu += cpu_ns > BLOCKED_MS * 1e6
        if cpu_ns <= self._worst_ns and self._on_blocked is None:
            return
        name = _name(callback)
        if cpu_ns > self._worst_ns:
            self._worst_ns, self._worst = cpu_ns, f"{name} ({cpu_ns / 1e6:.1f} ms)"
        if self._on_blocked is not None:
            self._on_blocked(f"the event loop ran {name} for {wall_ns / 1e6:.1f} ms, {cpu_ns / 1e6:.1f} ms of CPU time")


def log_blocked(text: str) -> None:
    """For `on_blocked`: log a warning."""
    _LOG.warning("%s", text)


def _name(callback: object) -> str:
    """A task's coroutine and its current line, or the function."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        frames = owner.get_stack(limit=1)
        position = f" before line {frames[0].f_lineno}" if frames else ""
        return f"{getattr(coroutine, '__qualname__', coroutine)}{position}"
    return str(getattr(callback, "__qualname__", callback))
