"""The front's workers together, one process for each device: a session is opened where the fewest are, and stays there.

A worker that dies leaves the others' sessions alone; one that fails for good leaves only its places. Knows no page.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.core.controls import Control
from pipelines.core.errors import WorkerError

from .handle import BusyError, WorkerHandle, WorkerPhase, WorkerStatus
from .messages import WorkerReady
from .process import WorkerOptions
from .proxy import SessionProxy

_BY_HOPE = (WorkerPhase.READY, WorkerPhase.RESTARTING, WorkerPhase.LOADING, WorkerPhase.FAILED, WorkerPhase.STOPPED)
_LEFT = (WorkerPhase.FAILED, WorkerPhase.STOPPED)


class WorkerPool:
    """The same doors as one WorkerHandle has. Its methods may be called from any thread."""

    def __init__(self, options: Sequence[WorkerOptions], *, max_sessions: int = 4) -> None:
        """options: of each worker, one at least, with a device each. max_sessions: of all together, shared evenly."""
        assert options, "a pool of no workers"
        places = -(-max_sessions // len(options))
        self.workers = tuple(WorkerHandle(own, max_sessions=places) for own in options)
        self.max_sessions = max_sessions

    def start(self) -> None:
        """Start all and return at once."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """End all workers and every session. Stopping twice is fine."""
        for worker in self.workers:
            worker.stop()

    def __enter__(self) -> WorkerPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def status(self) -> WorkerStatus:
        """Of all: ready as soon as one is, failed when none is left. text, notices: each worker's, numbered."""
        each = [worker.status for worker in self.workers]
        if len(each) == 1:
            return each[0]
        best = min(each, key=lambda status: _BY_HOPE.index(status.phase))
        named = [
            (f"{i} ({device_of(w)})", status) for i, (w, status) in enumerate(zip(self.workers, each, strict=True), 1)
        ]
        return WorkerStatus(
            phase=best.phase,
            text=" · ".join(f"{name}: {status.text}" for name, status in named),
            notices=tuple(f"{name}: {text}" for name, status in named for text in status.notices),
            ready=best.ready or next((status.ready for status in each if status.ready is not None), None),
            error=best.error,
            restarts=sum(status.restarts for status in each),
        )

    def status_of(self, session: str) -> WorkerStatus:
        """Of the worker that has this session; of all where it has ended."""
        return next((worker.status for worker in self.workers if worker.has(session)), self.status)

    def wait_ready(self, timeout_s: float) -> WorkerReady:
        """Block until every worker stands; the first one's. Raises what one failed with, or WorkerError after
        `timeout_s`."""
        until_s = time.monotonic() + timeout_s
        first, *_ = [worker.wait_ready(max(0.0, until_s - time.monotonic())) for worker in self.workers]
        return first

    def open(self, *, control: Control | None = None, prompt_only: bool = True) -> SessionProxy:
        """A new session with the ready worker that has the fewest, else with one that is starting. Raises BusyError or
        WorkerError.
        """
        able = [worker for worker in self.workers if worker.status.phase not in _LEFT]
        if not able:
            raise self.status.error or WorkerError("No worker is running.", "Start zoetrope live again.")
        able.sort(key=lambda worker: (_BY_HOPE.index(worker.status.phase), worker.sessions))
        if self.sessions < self.max_sessions:
            for worker in able:
                try:
                    return worker.open(control=control, prompt_only=prompt_only)
                except BusyError:
                    continue
        maximum = min(self.max_sessions, sum(worker.max_sessions for worker in able))
        raise BusyError(
            f"Busy: all {maximum} sessions are in use.",
            "Try again when one has ended, or start with a larger --max-sessions.",
        )

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return sum(worker.sessions for worker in self.workers)


Workers = WorkerHandle | WorkerPool
"""What sessions are opened with."""


def device_of(worker: WorkerHandle) -> str:
    """What the worker computes on: as it said, else as it was told."""
    ready = worker.status.ready
    return ready.info.device if ready is not None else worker.options.engine.device
