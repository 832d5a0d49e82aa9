"""One user's session: its stream in the worker, its source, its times, its tokens, and when it may be taken away.

Doors (page, WebSocket, WebRTC, MJPEG) connect to it and leave it; it outlives them by a grace time, so that a lost
connection can come back. Knows no protocol.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from app.media.picture import Picture
from app.worker.meter import MeterReading
from app.worker.proxy import SessionAccounting, SessionProxy, SessionState
from app.worker.stage_times import Percentiles, Stage, StageTimes
from pipelines.core.controls import Control
from pipelines.core.errors import ZoetropeError

from .feed import Feed
from .sound import SoundHub

TOKEN_BYTES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReading:
    """What a session says of itself. trouble: what ended it, or why the last change was refused."""

    state: SessionState
    accounting: SessionAccounting
    meter: MeterReading
    stages: Mapping[Stage, Percentiles]
    age_s: float
    connections: int
    trouble: str


class Session:
    """A stream with a name, a secret and connections. Safe from several threads.

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
        self._left_s = self.created_s  # when the last connection went
        self._closed = False

    # ---- what doors do ----

    def connect(self) -> None:
        """A door has opened onto this session."""
        with self._lock:
            self._connections += 1

    def disconnect(self) -> None:
        """A door has closed; the grace time begins with the last."""
        with self._lock:
            assert self._connections > 0, "disconnected more often than connected"
            self._connections -= 1
            self._left_s = time.monotonic()

    def touch(self) -> None:
        """Somebody without a connection (polling, MJPEG) has asked for this session."""
        with self._lock:
            self._left_s = time.monotonic()

    def feed(self) -> Feed:
        """The finished frames, newest first; on the running event loop."""
        return Feed(self.proxy)

    def submit(self, image: Picture, captured_ns: int | None = None, received: bytes | None = None) -> int | None:
        """Offer an input picture; its number in this session, or None when there is no stream to take it.

        received: the JPEG or WebP file that it was decoded from; a take keeps that instead of the pixels.
        """
        return self.proxy.submit(image, captured_ns, received)

    def drop_input(self, captured_ns: int | None = None, received: bytes | None = None) -> None:
        """A door had an input replaced by a newer one before it could be submitted: it counts as taken and dropped.

        received: its JPEG or WebP file, for a take, which can fill it in again.
        """
        with self._lock:
            self._replaced += 1
        if received is not None:
            self.proxy.pass_over(time.monotonic_ns() if captured_ns is None else captured_ns, received)

    def start_take(self, folder: Path, may_grow: Callable[[int], bool] = lambda size: True) -> None:
        """Record into `folder` (TakeStore.create makes one; its may_grow keeps the quota). Raises InputError,
        OutputError. Touches the disk: not on an event loop."""
        self.proxy.start_take(folder, may_grow)

    def stop_take(self) -> None:
        """End the take and wait until it is written: not on an event loop. Without one nothing happens."""
        self.proxy.stop_take()

    @property
    def recording(self) -> bool:
        """Whether a take is being written. One that ended by itself says why in the session's trouble."""
        return self.proxy.recording

    def apply(self, values: Mapping[str, object]) -> None:
        """Change controls by name, as JSON has them. Raises ControlError; then nothing is changed."""
        self.proxy.set_control(Control.of(values))

    def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from what `submit` gives."""
        self.proxy.set_source(prompt_only=prompt_only)

    # ---- what is known of it ----

    def unused_s(self, now_s: float) -> float:
        """Seconds without any connection; 0 while there is one."""
        with self._lock:
            return 0.0 if self._connections else now_s - self._left_s

    def read(self) -> SessionReading:
        """State, count, rates and times of this moment."""
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
        """What ended the session, if an error did."""
        return self.proxy.error

    @property
    def over(self) -> bool:
        """No frame will come any more."""
        return self.proxy.over

    def close(self) -> None:
        """End the session. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.proxy.close()
        self._on_close(self)
