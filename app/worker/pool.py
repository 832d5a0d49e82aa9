"""All workers of the front, one process for each device: a session is opened on the least loaded one and stays there.

A dying worker does not affect the others' sessions; one that fails permanently only reduces the capacity. Independent
of the page.
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

_BY_PREFERENCE = (
    WorkerPhase.READY,
    WorkerPhase.RESTARTING,
    WorkerPhase.LOADING,
    WorkerPhase.FAILED,
    WorkerPhase.STOPPED,
)
_GONE = (WorkerPhase.FAILED, WorkerPhase.STOPPED)


class WorkerPool:
    """Has the interface of a WorkerHandle. Its methods may be called from any thread."""

    def __init__(self, options: Sequence[WorkerOptions], *, max_sessions: int = 4) -> None:
        """options: of each worker, at least one, with one device each. max_sessions: in total, divided evenly."""
        assert options, "a pool without workers"
        share = -(-max_sessions // len(options))
        self.workers = tuple(WorkerHandle(own, max_sessions=share) for own in options)
        self.max_sessions = max_sessions

    def start(self) -> None:
        """Start all workers and return immediately."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """End all workers and every session. May be called twice."""
        for worker in self.workers:
            worker.stop()

    def __enter__(self) -> WorkerPool:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def status(self) -> WorkerStatus:
        """Of the pool: ready as soon as one worker is, failed when none is left; silent if all that are ready are.
        text, notices: each worker's, numbered. preparation: of the first that prepares anything."""
        each = [worker.status for worker in self.workers]
        if len(each) == 1:
            return each[0]
        best = min(each, key=_preference)
        named = [
            (f"{i} ({device_of(w)})", status) for i, (w, status) in enumerate(zip(self.workers, each, strict=True), 1)
        ]
        return WorkerStatus(
            phase=best.phase,
            text=" · ".join(f"{name}: {status.text}" for name, status in named),
            notices=tuple(f"{name}: {text}" for name, status in named for text in status.notices),
            preparation=next((s.preparation for s in each if s.preparation.builds), each[0].preparation),
            ready=best.ready or next((status.ready for status in each if status.ready is not None), None),
            error=best.error,
            restarts=sum(status.restarts for status in each),
            silence=best.silence,
        )

    def status_of(self, session: str) -> WorkerStatus:
        """The status of this session's worker, or of the pool if the session has ended."""
        return next((worker.status for worker in self.workers if worker.has(session)), self.status)

    def wait_ready(self, timeout_s: float) -> WorkerReady:
        """Block until every worker is ready; returns the first one's message.

        Raises the error that one failed with, or WorkerError after `timeout_s`.
        """
        until_s = time.monotonic() + timeout_s
        first, *_ = [worker.wait_ready(max(0.0, until_s - time.monotonic())) for worker in self.workers]
        return first

    def open(self, *, control: Control | None = None, prompt_only: bool = True) -> SessionProxy:
        """Open a session on the ready worker with the fewest sessions, or else on one that is starting.

        Raises BusyError or WorkerError.
        """
        usable = [worker for worker in self.workers if worker.status.phase not in _GONE]
        if not usable:
            raise self.status.error or WorkerError("No worker is running.", "Start zoetrope live again.")
        usable.sort(key=lambda worker: (_preference(worker.status), worker.sessions))
        if self.sessions < self.max_sessions:
            for worker in usable:
                try:
                    return worker.open(control=control, prompt_only=prompt_only)
                except BusyError:
                    continue
        maximum = min(self.max_sessions, sum(worker.max_sessions for worker in usable))
        raise BusyError(
            f"Busy: all {maximum} sessions are in use.",
            "Try again when one has ended, or start with a larger --max-sessions.",
        )

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return sum(worker.sessions for worker in self.workers)


def _preference(status: WorkerStatus) -> tuple[int, bool]:
    """Lower is better: which worker a session is opened on."""
    return _BY_PREFERENCE.index(status.phase), bool(status.silence)


Workers = WorkerHandle | WorkerPool
"""What opens sessions."""


def device_of(worker: WorkerHandle) -> str:
    """The worker's device: the reported one, or the requested one before the worker is ready."""
    ready = worker.status.ready
    return ready.info.device if ready is not None else worker.options.engine.device
