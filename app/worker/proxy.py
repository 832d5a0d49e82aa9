"""One user's session in the front process: its requested controls, the newest frame, the exact count of frames.

Survives the worker: when it dies, the session keeps its controls and counts and is attached to the next one. Used from
several threads; one condition guards everything. Independent of the page and HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from pathlib import Path

from app.media.picture import cover
from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ZoetropeError
from pipelines.core.types import Frame, Picture, ReuseReport, StreamInfo

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
from .shared_frames import FrameBuffers, InputMailbox, session_buffers
from .stage_times import Stage
from .take import SessionTake

_SPARE_OUTPUTS = 4
_NANOSECONDS = Fraction(1, 1_000_000_000)


class SessionState(Enum):
    """The life cycle of a session."""

    OPENING = "opening"  # no stream: the worker is starting or restarting
    LIVE = "live"
    ENDED = "ended"  # by an error
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionAccounting:
    """Frame counts of the whole session: taken == out + dropped + skipped + in_flight.

    taken: inputs and generated frames.
    """

    taken: int = 0
    out: int = 0
    dropped: int = 0
    skipped: int = 0
    in_flight: int = 0


class SessionProxy:
    """A session's handle, returned by WorkerHandle.open."""

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
        self._rung_at: int | None = None  # `_posted` when the doorbell in flight was rung
        self._stats: SessionStats | None = None
        self._carried = SessionAccounting()  # from earlier workers
        self._admitted_ns: int | None = None
        self._newest: tuple[int, Frame] | None = None  # number and frame in one tuple: read without the condition
        self._meter = Meter()
        self._listeners: dict[Callable[[], None], None] = {}
        self._take = SessionTake(
            name,
            self._changed,
            send=send,
            live=lambda: self._state is SessionState.LIVE,
            over=lambda: self.over,
            first_seq=lambda: self._carried.taken,
            tell=self._notify,
        )

    # ---- for clients ----

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def info(self) -> StreamInfo | None:
        """The stream's properties; None before it is open."""
        return self._info

    @property
    def error(self) -> ZoetropeError | None:
        """What ended the session."""
        return self._error

    @property
    def notice(self) -> str:
        """Why the last change was refused, or another message for the user; empty after a new change."""
        return self._notice

    @property
    def tick_ms(self) -> float:
        """Running mean of the engine's tick; 0 before the first report."""
        return self._stats.tick_ms if self._stats else 0.0

    @property
    def control(self) -> Control:
        """All changes so far merged into one, without momentary controls; applied by a new worker."""
        return self._control

    def set_control(self, control: Control) -> None:
        """Apply a partial change to the stream, and keep it for the next worker. Raises WorkerError while the worker
        does not respond, and then changes nothing."""
        momentary = [name for name in control.changes() if CONTROLS[name].momentary]
        with self._changed:
            if self._mailbox is not None:
                self._send(ChangeControl(session=self.name, control=control))
            self._control = self._control.merged(control.without(momentary))
            self._notice = ""

    def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from pictures passed to `submit`. Raises WorkerError as `set_control`."""
        with self._changed:
            if self._mailbox is not None:
                self._send(ChangeSource(session=self.name, prompt_only=prompt_only, posted=self._posted))
            self._prompt_only = prompt_only

    def submit(self, image: Picture, captured_ns: int | None = None, received: bytes | None = None) -> int | None:
        """Submit a picture [H, W, 3] uint8 RGB of any size, captured now or at `captured_ns` (monotonic).

        It is cropped and scaled to the stream's size. received: the JPEG or WebP file that it was decoded from, if any;
        a take stores it instead of the pixels. Returns the input's number, which its output frame carries as
        source_seq; None, and the picture is not counted, while there is no stream.
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
        """Return the newest frame and its number if above `after`, waiting up to `timeout_s` for one; otherwise None.

        With `timeout_s` 0 it never blocks, not even on a thread that copies a picture.
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
        """Capture time of the input that the stream took last; None before the first."""
        return self._admitted_ns

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake`, which must be quick, after every frame and state change. Returns a function that
        unsubscribes."""
        with self._changed:
            self._listeners[wake] = None

        def unsubscribe() -> None:
            with self._changed:
                self._listeners.pop(wake, None)

        return unsubscribe

    def notify(self, text: str) -> None:
        """Show a message to everyone who watches this session."""
        with self._changed:
            self._notify(text)

    @property
    def reuse(self) -> ReuseReport | None:
        """What the stream took over from earlier frames; None where it reuses nothing."""
        return self._stats.reuse if self._stats else None

    def engine_times(self) -> dict[Stage, float]:
        """The last times of the worker's stages in ms; empty before the first report."""
        stats = self._stats
        if stats is None:
            return {}
        stages = (Stage.WAIT, Stage.ENCODE, Stage.DENOISE, Stage.DECODE)
        return dict(zip(stages, (stats.wait_ms, stats.encode_ms, stats.denoise_ms, stats.decode_ms), strict=True))

    def start_take(self, folder: Path, may_grow: Callable[[], bool] = lambda: True) -> None:
        """Record from now on into `folder`, which must not contain a take. The stream is replaced by a new one with the
        same controls. may_grow: see TakeWriter. Raises InputError, OutputError."""
        if self.over:
            raise InputError("The session has ended.", "Open a new one.")
        self._take.start(folder, may_grow)

    def stop_take(self) -> None:
        """End the take, if there is one, and wait until it is written."""
        self._take.stop()

    @property
    def recording(self) -> bool:
        """Whether a take is being written."""
        return self._take.recording

    def record_undecoded(self, captured_ns: int, received: bytes) -> None:
        """Add to a take a JPEG or WebP file that was dropped before it was decoded."""
        with self._changed:
            self._take.dropped_undecoded(captured_ns, received)

    @property
    def over(self) -> bool:
        """Whether no more frames will arrive."""
        return self._state in (SessionState.ENDED, SessionState.CLOSED)

    @property
    def accounting(self) -> SessionAccounting:
        """Exact as of the worker's last report, plus inputs submitted since."""
        with self._changed:
            return self._account()

    def meter(self) -> MeterReading:
        """Frame rate and latency, from capture to arrival in this process, over the last seconds."""
        with self._changed:
            return self._meter.read(time.monotonic_ns())

    def close(self) -> None:
        """End the session; its shared memory is unlinked once the worker has detached. May be called twice."""
        self._on_close(self)

    # ---- for WorkerHandle ----

    def attach(self, info: StreamInfo) -> OpenSession:
        """Allocate shared memory for a stream of a new worker. Returns the message that opens it.

        Raises SharedMemoryError.
        """
        count = _SPARE_OUTPUTS + 2 * info.max_frames
        with self._changed:
            self._mailbox, self._outputs = session_buffers(width=info.width, height=info.height, outputs=count)
            return OpenSession(
                session=self.name,
                inputs=self._mailbox.buffers.spec,
                outputs=self._outputs.spec,
                control=self._control,
                prompt_only=self._prompt_only,
            )

    def end(self, state: SessionState) -> None:
        """End the session; the memory stays until `detach`."""
        with self._changed:
            if self._state is not SessionState.ENDED:
                self._state = state
            self._wake()

    def detach(self, state: SessionState) -> None:
        """Unlink the memory once the worker has detached or died. Frames in flight are lost and count as dropped."""
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
            self._wake()

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
        """Handle a message from the worker about this session."""
        with self._changed:
            match message:
                case StreamOpened():
                    self._info, self._state = message.info, SessionState.LIVE
                    self._take.opened()
                case InputTaken():
                    self._ring_again()
                case InputAdmitted():
                    self._admitted_ns = message.captured_ns
                case OutputReady():
                    self._deliver(message)
                case SessionStats():
                    self._stats = message
                case TakeRecords():
                    self._take.add_records(message)
                case SessionNotice():
                    self._notice = message.text
                case SessionEnded():
                    self._error = ZoetropeError(message.message, message.remedy)
                    self._state = SessionState.ENDED
            self._wake()

    def _notify(self, text: str) -> None:
        """Show a message; the condition is held."""
        self._notice = text
        self._wake()

    def _wake(self) -> None:
        """Wake waiting threads and listeners; the condition is held."""
        self._changed.notify_all()
        for wake in self._listeners:
            wake()

    def _ring_again(self) -> None:
        """The doorbell was noticed. Inputs posted since it was rung may have been missed: ring again if there are
        any."""
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
        """Of the inputs that the worker has not seen only the newest can still be taken; the others count as
        dropped."""
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
