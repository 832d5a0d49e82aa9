"""One user's session as the front process sees it: what was asked for, the newest frame, the exact count of frames.

Survives the worker: when that dies, the session keeps its controls and counts and is attached to the next one. Used
from several threads; one condition guards everything. Knows no page and no HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path

from app.media.picture import Picture, cover
from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ZoetropeError
from pipelines.core.types import Frame, StreamInfo

from .messages import (
    ChangeControl,
    ChangeSource,
    InputAdmitted,
    InputPosted,
    InputTaken,
    OpenSession,
    OutputReady,
    OutputRelease,
    SessionEnded,
    SessionNotice,
    SessionStats,
    StreamOpened,
    TakeRecords,
    ToWorker,
)
from .meter import Meter, MeterReading
from .shared_frames import FrameBuffers, InputMailbox
from .stage_times import Stage
from .take import SessionTake

_SPARE_OUTPUTS = 4
_NANOSECONDS = Fraction(1, 1_000_000_000)


class SessionState(Enum):
    """Where a session stands."""

    OPENING = "opening"  # no stream yet, or none any more because the worker is being restarted
    LIVE = "live"
    ENDED = "ended"  # by an error
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAccounting:
    """taken == out + dropped + skipped + in_flight, over the whole session. taken: inputs and generated frames."""

    taken: int = 0
    out: int = 0
    dropped: int = 0
    skipped: int = 0
    in_flight: int = 0


class SessionProxy:
    """A handle that WorkerHandle.open returns."""

    def __init__(
        self,
        name: str,
        *,
        control: Control,
        prompt_only: bool,
        send: Callable[[ToWorker], None],
        on_close: Callable[[SessionProxy], None],
    ) -> None:
        self.name = name
        self._send = send
        self._on_close = on_close
        self._changed = threading.Condition()
        self._control = control
        self._prompt_only = prompt_only
        self._state = SessionState.OPENING
        self._info: StreamInfo | None = None
        self._error: ZoetropeError | None = None
        self._notice = ""
        self._mailbox: InputMailbox | None = None
        self._outputs: FrameBuffers | None = None
        self._posted = 0  # to this worker
        self._rung_at: int | None = None  # posts when the doorbell under way was rung
        self._stats: SessionStats | None = None
        self._carried = SessionAccounting()  # from earlier workers
        self._admitted_ns: int | None = None
        self._newest: tuple[int, Frame] | None = None  # the frame and its number, in one: read without the condition
        self._meter = Meter()
        self._listeners: dict[Callable[[], None], None] = {}
        self._take = SessionTake(
            name,
            self._changed,
            send=send,
            live=lambda: self._state is SessionState.LIVE,
            first_seq=lambda: self._carried.taken,
            tell=self._notify,
        )

    # ---- the page's side ----

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def info(self) -> StreamInfo | None:
        """What was chosen; None before the stream stands."""
        return self._info

    @property
    def error(self) -> ZoetropeError | None:
        """What ended the session."""
        return self._error

    @property
    def notice(self) -> str:
        """Why the last change was refused; empty after one that was not."""
        return self._notice

    @property
    def tick_ms(self) -> float:
        """Running mean of the engine's tick; 0 before the first."""
        return self._stats.tick_ms if self._stats else 0.0

    @property
    def control(self) -> Control:
        """All changes so far as one: what a new worker is told."""
        return self._control

    def set_control(self, control: Control) -> None:
        """Apply a partial change to the stream, and remember it for the next worker."""
        with self._changed:
            momentary = [name for name in control.changes() if CONTROLS[name].momentary]
            self._control = self._control.merged(control.without(momentary))
            self._notice = ""
            live = self._mailbox is not None
        if live:
            self._send(ChangeControl(session=self.name, control=control))

    def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from what `submit` gives."""
        with self._changed:
            self._prompt_only = prompt_only
            live, posted = self._mailbox is not None, self._posted
        if live:
            self._send(ChangeSource(session=self.name, prompt_only=prompt_only, posted=posted))

    def submit(self, image: Picture, captured_ns: int | None = None, received: bytes | None = None) -> int | None:
        """Offer a picture [H, W, 3] uint8 RGB of any size, captured now or at `captured_ns` (monotonic).

        received: the JPEG or WebP file that it was decoded from, if it was: a take keeps that instead of the pixels.
        It is cut and scaled to the stream's size. Returns its number, which the frame made of it carries as source_seq;
        None, and not counted, while there is no stream to take it.
        """
        info = self._info
        if info is None:
            return None
        captured_ns = time.monotonic_ns() if captured_ns is None else captured_ns
        fitted = cover(image, info.width, info.height)
        with self._changed:
            if self._mailbox is None or self._state is not SessionState.LIVE:
                return None
            pts, seq = captured_ns, self._carried.taken + self._posted
            frame = Frame(image=fitted, pts=pts, time_base=_NANOSECONDS, seq=seq, captured_ns=captured_ns)
            self._take.offered(seq, captured_ns, fitted, received)
            self._mailbox.post(frame)
            self._posted += 1
            ring = self._rung_at is None
            if ring:
                self._rung_at = self._posted
        if ring:
            self._send(InputPosted(session=self.name))
        return seq

    def newest(self, after: int = 0, timeout_s: float = 0.0) -> tuple[int, Frame] | None:
        """The newest frame and its number if that is above `after`, waiting up to `timeout_s` for one.

        With `timeout_s` 0 it waits for nobody, not for a thread that copies a picture either.
        """
        if timeout_s > 0:
            with self._changed:
                self._changed.wait_for(lambda: self.count > after or self.over, timeout_s)
        newest = self._newest
        return None if newest is None or newest[0] <= after else newest

    @property
    def count(self) -> int:
        """Frames delivered so far."""
        newest = self._newest
        return newest[0] if newest is not None else 0

    @property
    def admitted_ns(self) -> int | None:
        """When the input was captured that the stream took last; None before the first."""
        return self._admitted_ns

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, which must be quick, after every frame and change of state; the result stops it."""
        with self._changed:
            self._listeners[wake] = None

        def forget() -> None:
            with self._changed:
                self._listeners.pop(wake, None)

        return forget

    def notify(self, text: str) -> None:
        """Show a sentence to whoever watches this session."""
        with self._changed:
            self._notify(text)

    def engine_times(self) -> dict[Stage, float]:
        """The worker's last times of each of its stages, in ms; empty before the first report."""
        stats = self._stats
        if stats is None:
            return {}
        return {
            Stage.WAIT: stats.wait_ms,
            Stage.ENCODE: stats.encode_ms,
            Stage.DENOISE: stats.denoise_ms,
            Stage.DECODE: stats.decode_ms,
        }

    def start_take(self, folder: Path, may_grow: Callable[[int], bool] = lambda size: True) -> None:
        """Record what happens from now on into `folder`, in which no take may be yet. The stream begins afresh with the
        same controls. may_grow: see TakeWriter. Raises InputError, OutputError."""
        if self.over:
            raise InputError("The session has ended.", "Open a new one.")
        self._take.start(folder, may_grow)

    def stop_take(self) -> None:
        """End the take and wait until it is written. Without one nothing happens."""
        self._take.stop()

    @property
    def recording(self) -> bool:
        """Whether a take is being written."""
        return self._take.recording

    def pass_over(self, captured_ns: int, received: bytes) -> None:
        """For takes: a JPEG or WebP file that was replaced by a newer one before it was decoded."""
        with self._changed:
            self._take.passed_over(captured_ns, received)

    @property
    def over(self) -> bool:
        """No frame will come any more."""
        return self._state in (SessionState.ENDED, SessionState.CLOSED)

    @property
    def accounting(self) -> SessionAccounting:
        """Exact as of the worker's last report, and of what was offered since."""
        with self._changed:
            return self._account()

    def meter(self) -> MeterReading:
        """Frame rate and latency, from capture to arrival in this process, over the last seconds."""
        with self._changed:
            return self._meter.read(time.monotonic_ns())

    def close(self) -> None:
        """End the session; the shared memory goes when the worker has let go of it. Closing twice is fine."""
        self._on_close(self)

    # ---- WorkerHandle's side ----

    def attach(self, info: StreamInfo) -> OpenSession:
        """New shared memory for a stream of a fresh worker; returns the message that opens it."""
        with self._changed:
            self._mailbox = InputMailbox.create(width=info.width, height=info.height)
            count = _SPARE_OUTPUTS + 2 * info.max_frames
            self._outputs = FrameBuffers.create(count=count, width=info.width, height=info.height)
            return OpenSession(
                session=self.name,
                inputs=self._mailbox.buffers.spec,
                outputs=self._outputs.spec,
                control=self._control,
                prompt_only=self._prompt_only,
            )

    def end(self, state: SessionState) -> None:
        """No more frames; the memory stays until `detach`."""
        with self._changed:
            if self._state is not SessionState.ENDED:
                self._state = state
            self._tell()

    def detach(self, state: SessionState) -> None:
        """The worker has let go: unlink the memory. What was in flight is lost, and counted as dropped."""
        with self._changed:
            now = self._account()
            self._carried = SessionAccounting(
                taken=now.taken, out=now.out, skipped=now.skipped, dropped=now.dropped + now.in_flight
            )
            for buffers in (self._mailbox.buffers if self._mailbox else None, self._outputs):
                if buffers is not None:
                    buffers.close()
            self._mailbox = self._outputs = self._stats = self._rung_at = None
            self._posted = 0
            if state is not SessionState.OPENING:
                self._take.ended("the session ended")
            if self._state is not SessionState.ENDED:
                self._state = state
            self._tell()

    def receive(
        self,
        message: StreamOpened
        | InputTaken
        | InputAdmitted
        | OutputReady
        | SessionStats
        | TakeRecords
        | SessionNotice
        | SessionEnded,
    ) -> None:
        """What the worker says about this session."""
        with self._changed:
            match message:
                case StreamOpened():
                    self._info, self._state = message.info, SessionState.LIVE
                    self._take.opened()
                case InputTaken():
                    self._heard()
                case InputAdmitted():
                    self._admitted_ns = message.captured_ns
                case OutputReady():
                    self._deliver(message)
                case SessionStats():
                    self._stats = message
                case TakeRecords():
                    self._take.told(message)
                case SessionNotice():
                    self._notice = message.text
                case SessionEnded():
                    self._error = ZoetropeError(message.message, message.remedy)
                    self._state = SessionState.ENDED
            self._tell()

    def _notify(self, text: str) -> None:
        """Show a sentence; holds the condition."""
        self._notice = text
        self._tell()

    def _tell(self) -> None:
        """Wake who waits; holds the condition."""
        self._changed.notify_all()
        for wake in self._listeners:
            wake()

    def _heard(self) -> None:
        """The doorbell was heard. What was posted after it was rung may have been missed: ring again."""
        missed = self._rung_at is not None and self._posted > self._rung_at
        self._rung_at = self._posted if missed else None
        if missed:
            self._send(InputPosted(session=self.name))

    def _deliver(self, message: OutputReady) -> None:
        if self._outputs is None:
            return
        frame = self._outputs.read(message.index, message.generation)
        self._send(OutputRelease(session=self.name, index=message.index, generation=message.generation))
        if frame is not None:
            if message.take:
                self._take.handed_out(frame, message.take)
            self._newest = self.count + 1, frame
            self._meter.arrived(time.monotonic_ns(), frame.captured_ns)

    def _account(self) -> SessionAccounting:
        """Of the posts that the worker has not seen yet only the newest can still be taken: the others are dropped."""
        stats, carried = self._stats, self._carried
        unseen = self._posted - (stats.seen if stats else 0)
        replaced = max(0, unseen - 1)
        return SessionAccounting(
            taken=carried.taken + self._posted + (stats.generated if stats else 0),
            out=carried.out + (stats.out if stats else 0),
            dropped=carried.dropped + (stats.dropped if stats else 0) + replaced,
            skipped=carried.skipped + (stats.skipped if stats else 0),
            in_flight=(stats.in_flight if stats else 0) + unseen - replaced,
        )
