"""What one browser tab does: picks a source, starts and stops its session, changes controls, asks for the newest frame.

Everything the page's callbacks need, without Gradio: plain values in, plain values out. One session for each tab; a
tab that has stopped asking is closed. Knows the worker client; knows no widget.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import cv2
import numpy as np

from pipelines.controls import Control
from pipelines.errors import InputError, ZoetropeError

from .client_session import ClientSession, SessionState
from .picture import jpeg
from .playback import Playback
from .worker_client import Phase, WorkerClient

_MOST_CAMERA_BYTES = 2_000_000
_MOST_CLOCKED = 128  # camera pictures whose time is remembered
_POLL_S = 0.5
_IDLE_S = 30.0  # a tab that shows its stage asks several times a second


class Source(Enum):
    """Where a tab's pictures come from; the value is the page's label."""

    PROMPT = "Prompt only"
    CAMERA = "Camera"
    VIDEO = "Video file"


@dataclass(slots=True, kw_only=True)
class Choice:
    """What the user has chosen so far."""

    source: Source = Source.PROMPT
    video: Path | None = None


class Tab:
    """One browser tab. Methods may be called from any thread; they never raise for a user's mistake but say it."""

    def __init__(self, client: WorkerClient) -> None:
        self.name = uuid.uuid4().hex
        self.message = ""  # the last thing that went wrong, for the stage
        self._client = client
        self._lock = threading.RLock()
        self._choice = Choice()
        self._control = Control()
        self._session: ClientSession | None = None
        self._playback: Playback | None = None
        self._orders = 0
        self._asked_s = time.monotonic()
        self._camera_clock: dict[int, float] = {}  # captured_ns: the browser's time of the same picture, in ms

    @property
    def running(self) -> bool:
        return self._session is not None and not self._session.over

    def order(self) -> dict[str, object]:
        """What the stage should do. number: rises, because answers to the browser may overtake each other."""
        with self._lock:
            self._orders += 1
            camera = self._choice.source is Source.CAMERA
            return {"tab": self.name, "number": self._orders, "running": self.running, "camera": camera}

    def start(self) -> None:
        """Open a session with the choices made so far. Raises ZoetropeError: busy, no worker, no file."""
        with self._lock:
            self.stop()
            self._asked_s = time.monotonic()
            self.message = ""
            if self._choice.source is Source.VIDEO and self._choice.video is None:
                raise InputError("No video was chosen yet.", "Upload a file first, or choose another source.")
            prompt_only = self._choice.source is Source.PROMPT
            self._session = self._client.open(control=self._control, prompt_only=prompt_only)
            self._play()

    def stop(self) -> None:
        """Close the session; the last picture stays on the stage."""
        with self._lock:
            self._silence()
            if self._session is not None:
                self._session.close()

    def choose(self, source: Source, video: Path | None) -> None:
        """Change the source, also while running. Raises InputError for a video that cannot be read."""
        with self._lock:
            self._choice = Choice(source=source, video=video)
            self._silence()
            if self._session is not None and self.running:
                self._session.set_source(prompt_only=source is Source.PROMPT)
                self._play()

    def change(self, values: Mapping[str, object]) -> None:
        """Change controls by name. Raises ControlError; then nothing is changed."""
        control = Control.of(values)
        with self._lock:
            merged = {**self._control.changes(), **control.changes()}
            self._control = Control(**merged)  # type: ignore[arg-type]  # names of the table
            if self._session is not None and self.running:
                self._session.set_control(control)

    def camera(self, data: str, at_ms: float) -> None:
        """A camera picture: a JPEG, base64, taken at `at_ms` of the browser's clock. What is no JPEG is ignored."""
        session = self._session
        if session is None or not self.running or self._choice.source is not Source.CAMERA:
            return
        if len(data) > _MOST_CAMERA_BYTES:
            return
        captured_ns = time.monotonic_ns()
        try:
            coded = np.frombuffer(base64.b64decode(data, validate=True), np.uint8)
        except binascii.Error:
            return
        picture = cv2.imdecode(coded, cv2.IMREAD_COLOR_RGB) if coded.size else None
        if picture is not None:
            self._camera_clock[captured_ns] = at_ms
            while len(self._camera_clock) > _MOST_CLOCKED:
                del self._camera_clock[next(iter(self._camera_clock))]
            session.submit(np.asarray(picture, dtype=np.uint8), captured_ns)

    def camera_failed(self, reason: str) -> None:
        """The browser gave no camera."""
        self.message = f"No camera: {reason}. Allow it in the browser, or choose another source."

    def poll(self, session_name: str, after: int) -> dict[str, object]:
        """What the stage shows next: the newest frame as base64 JPEG if there soon is one, and the figures.

        after: the number of the last frame that was shown of the session called `session_name`.
        """
        self._asked_s = time.monotonic()
        session = self._session
        if session is not None and session.name != session_name:
            after = 0
        found = session.newest(after, _POLL_S if self.running else 0.0) if session is not None else None
        answer = self._figures(session)
        if found is not None:
            number, frame = found
            answer |= {"number": number, "jpeg": base64.b64encode(jpeg(frame.image)).decode("ascii")}
            if frame.captured_ns is not None:
                answer["camera_ms"] = self._camera_clock.get(frame.captured_ns)
        return answer

    def idle(self, now_s: float) -> bool:
        """Nobody looks at the stage any more."""
        return now_s - self._asked_s > _IDLE_S

    def _figures(self, session: ClientSession | None) -> dict[str, object]:
        status = self._client.status
        answer: dict[str, object] = {
            "phase": status.phase.value,
            "text": status.text,
            "facts": " · ".join((status.text, *status.notices)),
            "running": self.running,
            "restarts": status.restarts,
            "message": self._trouble(session),
        }
        if session is not None:
            counts, meter = session.accounting, session.meter()
            answer |= {
                "session": session.name,
                "live": session.state is SessionState.LIVE,
                "frame_rate": round(meter.frame_rate, 1),
                "latency_ms": None if meter.latency_ms is None else round(meter.latency_ms),
                "tick_ms": session.tick_ms,
                "taken": counts.taken,
                "out": counts.out,
                "dropped": counts.dropped,
                "skipped": counts.skipped,
                "in_flight": counts.in_flight,
            }
        return answer

    def _trouble(self, session: ClientSession | None) -> str:
        if session is not None and session.error is not None:
            return str(session.error)
        if self._playback is not None and self._playback.error is not None:
            return str(self._playback.error)
        if session is not None and session.notice:
            return session.notice
        return self._client.status.text if self._client.status.phase is Phase.FAILED else self.message

    def _play(self) -> None:
        if self._choice.source is Source.VIDEO and self._choice.video is not None and self._session is not None:
            self._playback = Playback(self._choice.video, self._session.submit)

    def _silence(self) -> None:
        if self._playback is not None:
            self._playback.stop()
            self._playback = None


class Tabs:
    """All open tabs, by name; a thread closes those that nobody looks at."""

    def __init__(self, client: WorkerClient) -> None:
        self.client = client
        self._tabs: dict[str, Tab] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_forever, name="tabs", daemon=True)
        self._sweeper.start()

    def open(self) -> Tab:
        """A new tab."""
        tab = Tab(self.client)
        with self._lock:
            self._tabs[tab.name] = tab
        return tab

    def get(self, name: object) -> Tab:
        """The tab of that name. Raises ZoetropeError for one that is gone."""
        tab = self._tabs.get(str(name))
        if tab is None:
            raise ZoetropeError("This page belongs to an earlier run of Zoetrope.", "Reload it.")
        return tab

    def close(self, name: object) -> None:
        """The browser tab was closed."""
        with self._lock:
            tab = self._tabs.pop(str(name), None)
        if tab is not None:
            tab.stop()

    def stop(self) -> None:
        """Close all."""
        self._stopped.set()
        self._sweeper.join()
        for name in tuple(self._tabs):
            self.close(name)

    def sweep(self, now_s: float) -> None:
        """Stop the sessions of tabs that nobody looks at; the tab itself can start again."""
        for tab in tuple(self._tabs.values()):
            if tab.running and tab.idle(now_s):
                tab.stop()
                tab.message = "Stopped, because nobody was watching. Press Start to go on."

    def _sweep_forever(self) -> None:
        while not self._stopped.wait(2.0):
            self.sweep(time.monotonic())
