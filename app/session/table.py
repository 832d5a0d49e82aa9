"""All sessions of the front process: opening, expiry and shutdown.

Owns the limits on opening rate and idle time; the workers limit the number. Independent of protocols.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from app.worker.handle import BusyError
from app.worker.pool import Workers
from pipelines.core.controls import Control
from pipelines.core.errors import ZoetropeError

from .session import Session

_SWEEP_S = 1.0
_RETRY_S = 5
_REMEMBERED = 1024  # sessions that have ended


class UnknownSessionError(ZoetropeError):
    """There is no session with that id, or it has ended."""


class TooManyError(BusyError):
    """Sessions are being opened faster than allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """grace_s: how long a session outlives its last connection.

    per_minute: how many may be opened per minute, by all clients together; many times what the guard lets one address
    open, so that no address can use it up.
    """

    grace_s: float = 30.0
    per_minute: int = 600

    def __post_init__(self) -> None:
        if self.grace_s <= 0:
            raise ValueError(f"grace_s is {self.grace_s}; it must be above 0")
        if self.per_minute < 1:
            raise ValueError(f"per_minute is {self.per_minute}; it must be at least 1")


class SessionTable:
    """Opens, finds and ends sessions. Thread-safe; a thread of its own closes unused ones."""

    def __init__(self, workers: Workers, limits: SessionLimits | None = None) -> None:
        self.workers = workers
        self.limits = limits or SessionLimits()
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()  # id -> token
        self._opened_s: deque[float] = deque()
        self._draining = False
        self._stopped = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_forever, name="sessions", daemon=True)
        self._sweeper.start()

    def open(self, *, control: Control | None = None, prompt_only: bool = True) -> Session:
        """Open a session. Raises BusyError (no free slot, or too many per minute) and WorkerError.

        Never waits for a free slot.
        """
        now_s = time.monotonic()
        with self._lock:
            if self._draining:
                raise BusyError("Zoetrope is shutting down.", "Connect again when it is back.")
            while self._opened_s and now_s - self._opened_s[0] > 60:
                self._opened_s.popleft()
            if len(self._opened_s) >= self.limits.per_minute:
                raise TooManyError(
                    f"Busy: {self.limits.per_minute} sessions were opened within a minute.", "Try again in a minute."
                )
            session = Session(self.workers.open(control=control, prompt_only=prompt_only), self._forget)
            self._opened_s.append(now_s)
            self._sessions[session.id] = session
            return session

    def get(self, session_id: str) -> Session:
        """The session with that id. Raises UnknownSessionError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise UnknownSessionError(f"There is no session {session_id!r}.", "It has ended; open a new one.")
        return session

    def authorised(self, session_id: str, token: str) -> Session:
        """`get` with the session's token; without the right one the error does not reveal which sessions exist."""
        session = self._sessions.get(session_id)
        expected = session.token if session is not None else "-" * 32
        if not hmac.compare_digest(expected.encode(), token.encode()) or session is None:
            raise UnknownSessionError("There is no such session, or the token is wrong.", "Open a new one.")
        return session

    def knows(self, session_id: str, token: str) -> bool:
        """Whether the token belongs to this session, open or recently ended."""
        with self._lock:
            session = self._sessions.get(session_id)
            expected = session.token if session is not None else self._ended.get(session_id)
        return hmac.compare_digest((expected or "-" * 32).encode(), token.encode()) and expected is not None

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All open sessions."""
        with self._lock:
            return tuple(self._sessions.values())

    @property
    def draining(self) -> bool:
        """Whether the server is stopping: no session is opened any more."""
        return self._draining

    @property
    def retry_after_s(self) -> int:
        """Seconds that a client should wait after "busy" before it tries again."""
        return _RETRY_S

    def sweep(self, now_s: float) -> None:
        """Close sessions that have had no connection for the grace period, and those that have ended."""
        for session in self.sessions:
            if session.over or session.unused_s(now_s) > self.limits.grace_s:
                session.close()

    def stop(self) -> None:
        """Refuse new sessions and end all. Idempotent."""
        with self._lock:
            self._draining = True
        self._stopped.set()
        self._sweeper.join()
        for session in self.sessions:
            session.close()

    def _forget(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.id, None)
            self._ended[session.id] = session.token
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def _sweep_forever(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            self.sweep(time.monotonic())
