"""One user's session: its stream in the worker, its source, its latencies, its token, and when it may be closed.

Clients (page, WebSocket, WebRTC, MJPEG) connect and disconnect; the session outlives them by a grace period, so that a
lost connection can be re-established. Independent of protocols.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from app.worker.meter import MeterReading
from app.worker.proxy import SessionAccounting, SessionProxy, SessionState
from app.worker.stage_times import Percentiles, Stage, StageTimes
from pipelines.core.controls import Control
from pipelines.core.errors import ZoetropeError
from pipelines.core.types import Picture

from .feed import Feed
from .sound import SoundHub

TOKEN_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReading:
    """A session's status. trouble: what ended it, or why the last change was refused."""

    state: SessionState
    accounting: SessionAccounting
    meter: MeterReading
    stages: Mapping[Stage, Percentiles]
    age_s: float
    connections: int
    trouble: str


class Session:
    """A stream with a name, a secret and connections. Thread-safe.

    on_close: called once, when the session ends for good.
    """

    def __init__(self, proxy: SessionProxy, on_close: Callable[[Session], None]) -> None:
        self.id = proxy.name
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.proxy = proxy
        self.stages = StageTimes()
        self.sound = SoundHub()
        self.created_s = time.monotonic()
        self._on_close = on_close
        self._lock = threading.Lock()
        self._connections = 0
        self._replaced = 0
        self._last_used_s = self.created_s
        self._closed = False

    # ---- for clients ----

    def connect(self) -> None:
        """Count a client's connection."""
        with self._lock:
            self._connections += 1

    def disconnect(self) -> None:
        """End a client's connection; the grace period begins with the last one."""
        with self._lock:
            assert self._connections > 0, "disconnected more often than connected"
            self._connections -= 1
            self._last_used_s = time.monotonic()

    def touch(self) -> None:
        """Restart the grace period: a client without a connection (polling, MJPEG) uses this session."""
        with self._lock:
            self._last_used_s = time.monotonic()

    def feed(self, *, from_newest: bool = False) -> Feed:
        """The finished frames, newest first; for the running event loop.

        from_newest: begin with the one that is there already, if any.
        """
        return Feed(self.proxy, from_newest=from_newest)

    def submit(self, image: Picture, captured_ns: int | None = None, received: bytes | None = None) -> int | None:
        """Offer an input picture; returns its number in this session, or None if no stream is open to take it.

        received: the JPEG or WebP file that it was decoded from; a take stores that instead of the pixels.
        """
        return self.proxy.submit(image, captured_ns, received)

    def drop_input(self, captured_ns: int | None = None, received: bytes | None = None) -> None:
        """Count an input that a newer one replaced before it was submitted: as taken and dropped.

        received: its JPEG or WebP file, for a take, which can fill it in on replay.
        """
        with self._lock:
            self._replaced += 1
        if received is not None:
            self.proxy.record_undecoded(time.monotonic_ns() if captured_ns is None else captured_ns, received)

    def start_take(self, folder: Path, may_grow: Callable[[], bool] = lambda: True) -> None:
        """Record into `folder` (made by TakeStore.create, whose may_grow enforces the quota). Raises InputError,
        OutputError. Blocks on disk access: not on an event loop."""
        self.proxy.start_take(folder, may_grow)

    def stop_take(self) -> None:
        """End the take and wait until it is written: not on an event loop. Does nothing if there is none."""
        self.proxy.stop_take()

    @property
    def recording(self) -> bool:
        """Whether a take is being written. If one ended by itself, the session's trouble says why."""
        return self.proxy.recording

    def apply(self, values: Mapping[str, object]) -> None:
        """Change controls by name, with JSON values. Raises ControlError and then changes nothing."""
        self.proxy.set_control(Control.of(values))

    def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from submitted inputs."""
        self.proxy.set_source(prompt_only=prompt_only)

    # ---- status ----

    def unused_s(self, now_s: float) -> float:
        """Seconds without any connection; 0 while there is one."""
        with self._lock:
            return 0.0 if self._connections else now_s - self._last_used_s

    def read(self) -> SessionReading:
        """Current state, counts, rates and latencies."""
        with self._lock:
            connections, replaced = self._connections, self._replaced
        counts = self.proxy.accounting
        for stage, ms in self.proxy.engine_times().items():
            self.stages.add(stage, ms)
        return SessionReading(
            state=self.proxy.state,
            accounting=replace(counts, taken=counts.taken + replaced, dropped=counts.dropped + replaced),
            meter=self.proxy.meter(),
            stages=self.stages.read(),
            age_s=time.monotonic() - self.created_s,
            connections=connections,
            trouble=str(self.proxy.error) if self.proxy.error is not None else self.proxy.notice,
        )

    @property
    def error(self) -> ZoetropeError | None:
        """The error that ended the session, if any."""
        return self.proxy.error

    @property
    def over(self) -> bool:
        """Whether no further frame will come."""
        return self.proxy.over

    def close(self) -> None:
        """End the session. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.proxy.close()
        self._on_close(self)
