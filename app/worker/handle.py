"""The front's handle on one worker: start, restart, stop; open and close sessions.

Owns the thread that receives and the list of sessions. Sessions survive the death of a worker, and its hanging: a new
one is started and every session is reopened with its last controls. Never imports torch; independent of the page.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

from pipelines.core.controls import Control
from pipelines.core.errors import WorkerError, ZoetropeError
from pipelines.core.preparation import NOTHING_PREPARED, PreparationStatus

from .link import LifeSigns, WorkerLink
from .messages import (
    ChangeControl,
    ChangeSource,
    CloseSession,
    FromWorker,
    GpuMemory,
    SessionClosed,
    SessionEnded,
    StopWorker,
    ToWorker,
    WorkerFailed,
    WorkerNotice,
    WorkerPreparation,
    WorkerProgress,
    WorkerReady,
)
from .process import WorkerOptions
from .proxy import SessionProxy, SessionState
from .shared_frames import SharedMemoryError

_MAX_RESTARTS = 3
_RESTART_WINDOW_S = 60.0
_STOP_TIMEOUT_S = 5.0
_MAX_WAITING = 256  # messages that a worker has not taken, beyond which no more changes are accepted


class BusyError(ZoetropeError):
    """The maximum number of sessions is open."""


class WorkerPhase(Enum):
    """The life cycle of a worker."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """text: for the user. notices: what the user should know about the running engine. preparation: what its parts run
    with, and what is being made of them. ready: the worker's description
    of its engine, kept during a restart. error: why it failed permanently. silence: why a ready worker is not
    responding; "": it is."""

    phase: WorkerPhase = WorkerPhase.STOPPED
    text: str = "not started"
    notices: tuple[str, ...] = ()
    preparation: PreparationStatus = NOTHING_PREPARED
    ready: WorkerReady | None = None
    error: ZoetropeError | None = None
    restarts: int = 0
    pid: int | None = None
    silence: str = ""

    @property
    def serving(self) -> bool:
        """Whether it answers now: it is ready and responds."""
        return self.phase is WorkerPhase.READY and not self.silence


class WorkerHandle:
    """One worker process for one device. Its methods may be called from any thread, and none waits for the worker
    except where it says so."""

    def __init__(self, options: WorkerOptions, *, max_sessions: int = 4, signs: LifeSigns | None = None) -> None:
        self.options = options
        self._signs = signs or LifeSigns()
        self.max_sessions = max_sessions
        self._changed = threading.Condition(threading.RLock())
        self._status = WorkerStatus()
        self._sessions: dict[str, SessionProxy] = {}
        self._closing: dict[str, SessionProxy] = {}  # closed here; the worker is still attached to their memory
        self._gpu_memory: GpuMemory | None = None
        self._deaths: deque[float] = deque(maxlen=_MAX_RESTARTS)
        self._link: WorkerLink | None = None
        self._reader: threading.Thread | None = None
        self._stopping = False

    # ---- process ----

    def start(self) -> None:
        """Start the worker and return immediately; see `status` and `wait_ready`."""
        assert self._reader is None, "started twice"
        self._spawn(WorkerPhase.LOADING, f"loading {self.options.model}…")
        self._reader = threading.Thread(target=self._read_forever, name="worker-reader", daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """End the worker and every session, and unlink all shared memory. May be called twice."""
        with self._changed:
            if self._stopping or self._reader is None:
                return
            self._stopping = True
            ready = self._status.phase is WorkerPhase.READY
        link = self._link
        assert link is not None
        if ready:
            link.send(StopWorker())
        link.end(_STOP_TIMEOUT_S if ready else 0.0)  # killed if it is still loading, or stuck
        self._reader.join(_STOP_TIMEOUT_S)
        self._detach_all(SessionState.CLOSED)
        link.close()
        self._set(phase=WorkerPhase.STOPPED, text="stopped", pid=None)

    def __enter__(self) -> WorkerHandle:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def status(self) -> WorkerStatus:
        return self._status

    @property
    def gpu_memory(self) -> GpuMemory | None:
        """As last reported by the worker; None before the first report and for a worker without a GPU."""
        return self._gpu_memory

    def wait_ready(self, timeout_s: float) -> WorkerReady:
        """Block until the engine is loaded. Raises the error that the worker failed with, or WorkerError after
        `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._status.phase in (WorkerPhase.READY, WorkerPhase.FAILED), timeout_s)
            status = self._status
        if status.phase is WorkerPhase.READY and status.ready is not None:
            return status.ready
        if status.error is not None:
            raise status.error
        raise WorkerError(f"The worker is not ready after {timeout_s:g} s ({status.text}).")

    # ---- sessions ----

    def open(self, *, control: Control | None = None, prompt_only: bool = True) -> SessionProxy:
        """Open a session; it goes live when the worker is ready. Raises BusyError, or WorkerError (also if there is too
        little shared memory)."""
        with self._changed:
            if self._status.phase in (WorkerPhase.FAILED, WorkerPhase.STOPPED):
                raise self._status.error or WorkerError("The worker is not running.", "Start zoetrope live again.")
            if len(self._sessions) >= self.max_sessions:
                raise BusyError(
                    f"Busy: all {self.max_sessions} sessions are in use.",
                    "Try again when one has ended, or start with a larger --max-sessions.",
                )
            session = SessionProxy(
                uuid.uuid4().hex[:12],
                control=control or Control(),
                prompt_only=prompt_only,
                send=self._send,
                on_close=self._close_session,
            )
            self._sessions[session.name] = session
            if self._status.phase is WorkerPhase.READY:
                self._attach(session)
            return session

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return len(self._sessions)

    def has(self, session: str) -> bool:
        """Whether that session is open in this worker."""
        return session in self._sessions

    @property
    def workers(self) -> tuple[WorkerHandle, ...]:
        """This worker alone; the same interface as a pool's."""
        return (self,)

    def status_of(self, session: str) -> WorkerStatus:
        """`status`, whichever the session: there is only one worker."""
        return self._status

    def _attach(self, session: SessionProxy) -> None:
        """Give the session its memory and open its stream. Raises SharedMemoryError, which ends the session."""
        assert self._status.ready is not None
        try:
            self._send(session.attach(self._status.ready.info))
        except SharedMemoryError as error:
            session.receive(SessionEnded(session=session.name, message=error.message, remedy=error.remedy))
            self._detach_session(session.name)
            raise

    def _close_session(self, session: SessionProxy) -> None:
        with self._changed:
            if self._sessions.pop(session.name, None) is None:
                return
            if self._status.phase is WorkerPhase.READY:
                self._closing[session.name] = session  # its memory is unlinked on SessionClosed
                session.end(SessionState.CLOSED)
                self._send(CloseSession(session=session.name))
            else:
                session.detach(SessionState.CLOSED)

    def _detach_all(self, state: SessionState) -> None:
        with self._changed:
            for session in self._closing.values():
                session.detach(SessionState.CLOSED)
            self._closing.clear()
            for session in self._sessions.values():
                session.detach(state)
            if state is SessionState.CLOSED:
                self._sessions.clear()

    # ---- the pipe ----

    def _send(self, message: ToWorker) -> None:
        """Queue a message. Raises WorkerError for a change while the worker takes none: it hangs."""
        link = self._link
        assert link is not None
        if link.waiting >= _MAX_WAITING and isinstance(message, ChangeControl | ChangeSource):
            raise WorkerError(
                "The worker does not respond; nothing was changed.", "Try again shortly: it is replaced if it hangs."
            )
        link.send(message)

    def _read_forever(self) -> None:
        while self._read_until_death():
            pass

    def _read_until_death(self) -> bool:
        """Handle messages until the pipe breaks. Returns True if a new worker was started."""
        link = self._link
        assert link is not None
        try:
            while True:
                self._handle(link.receive())
        except (EOFError, OSError):
            pass
        exit_code = link.end(_STOP_TIMEOUT_S)  # killed if it closed its pipe but hangs
        with self._changed:
            return not self._stopping and self._restart(f"{link.hung or _exit_text(exit_code)}.")

    def _restart(self, reason: str) -> bool:
        failed = self._status.phase is WorkerPhase.FAILED
        text = f"{reason} Restarting it…"
        if not failed:
            self._set(phase=WorkerPhase.RESTARTING, text=text)  # before the sessions report it
        self._detach_all(SessionState.OPENING)
        if failed:
            return False
        now = time.monotonic()
        if len(self._deaths) == _MAX_RESTARTS and now - self._deaths[0] < _RESTART_WINDOW_S:
            error = WorkerError(
                f"{reason} It was restarted {_MAX_RESTARTS} times within {_RESTART_WINDOW_S:.0f} s.",
                "See its messages on the terminal; zoetrope doctor may help.",
            )
            self._fail(error)
            return False
        self._deaths.append(now)
        assert self._link is not None
        self._link.close()
        self._spawn(WorkerPhase.RESTARTING, text)
        self._set(restarts=self._status.restarts + 1)
        return True

    def _spawn(self, phase: WorkerPhase, text: str) -> None:
        self._link = WorkerLink(self.options, self._signs, self._silent)
        self._gpu_memory = None
        pid = self._link.process.pid
        self._set(phase=phase, text=text, notices=(), preparation=NOTHING_PREPARED, pid=pid, silence="")

    def _silent(self, reason: str) -> None:
        """The worker's silence began, or ended (reason: "")."""
        with self._changed:
            if self._status.phase is WorkerPhase.READY:
                self._set(silence=reason and f"{reason}; it is replaced if that goes on.")

    def _handle(self, message: FromWorker) -> None:
        match message:
            case WorkerProgress():
                if self._status.phase is WorkerPhase.LOADING:
                    self._set(text=message.text)
            case WorkerNotice():
                self._set(notices=tuple(dict.fromkeys((*self._status.notices, message.text))))
            case WorkerPreparation():
                self._set(preparation=message.status)
            case WorkerReady():
                self._ready(message)
            case WorkerFailed():
                self._fail(WorkerError(message.message, message.remedy))
            case GpuMemory():
                self._gpu_memory = message
            case SessionClosed():
                self._detach_session(message.session)
            case _:
                with self._changed:
                    session = self._sessions.get(message.session) or self._closing.get(message.session)
                if session is not None:
                    session.receive(message)
                if isinstance(message, SessionEnded):
                    self._detach_session(message.session)

    def _ready(self, message: WorkerReady) -> None:
        info = message.info
        backend = f"{info.backend} ({message.why})" if message.why else info.backend
        facts = f"{info.model}, {info.width}×{info.height}, {info.dtype}, {info.device}, {backend}"
        with self._changed:
            text = f"ready: {facts}, {message.threads} thread{'s' if message.threads != 1 else ''}"
            self._set(phase=WorkerPhase.READY, text=text, ready=message)
            assert self._link is not None
            self._link.watch()
            for session in tuple(self._sessions.values()):
                with suppress(SharedMemoryError):  # the session says it
                    self._attach(session)

    def _fail(self, error: ZoetropeError) -> None:
        with self._changed:
            self._set(phase=WorkerPhase.FAILED, text=str(error), error=error, pid=None)
            for session in self._sessions.values():
                session.receive(SessionEnded(session=session.name, message=error.message, remedy=error.remedy))

    def _detach_session(self, name: str) -> None:
        with self._changed:
            session = self._closing.pop(name, None) or self._sessions.pop(name, None)
        if session is not None:
            session.detach(SessionState.CLOSED)

    def _set(self, **changes: object) -> None:
        with self._changed:
            self._status = replace(self._status, **changes)  # type: ignore[arg-type]  # names of WorkerStatus
            self._changed.notify_all()


def _exit_text(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        hint = "; out of memory?" if exit_code == -9 else ""
        return f"The worker process ended (killed by signal {-exit_code}{hint})"
    return f"The worker process ended (exit status {exit_code})"
