"""The worker process: owns one engine and its streams on one device.

One thread and one loop: receive messages, push inputs, tick, publish finished frames. Sends and receives the messages
of messages.py over a pipe and pixels through shared_frames.py. Spawned by WorkerHandle. Independent of HTTP and the
page.
"""

from __future__ import annotations

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

from app.takes.machine import describe_machine
from pipelines.core.contracts import Engine, Stream
from pipelines.core.control_table import ENGINE_CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError, StreamError, ZoetropeError

from .beat import Beat
from .engine import OpenEngine, describe, open_engine
from .engine import WorkerOptions as WorkerOptions  # re-exported for whoever starts a worker
from .gpu_meter import gpu_meter
from .messages import (
    ChangeControl,
    ChangeSource,
    CloseSession,
    FromWorker,
    GpuMemory,
    InputPosted,
    InputTaken,
    OpenSession,
    OutputRelease,
    SessionClosed,
    SessionEnded,
    SessionNotice,
    StartTake,
    StopTake,
    StopWorker,
    StreamOpened,
    ToWorker,
    WorkerAlive,
    WorkerFailed,
    WorkerNotice,
    WorkerProgress,
)
from .preparing import PreparationWatch
from .session import WorkerSession
from .threads import begin_start, end_start, leave_out_packages, limit_spinning

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_MAX_WAIT_S = 0.1
_STATS_PERIOD_NS = 100_000_000
_GPU_PERIOD_NS = 1_000_000_000
_TICK_MEAN_WEIGHT = 0.1
_CHECK_PERIOD_NS = 3_000_000_000


def run_worker(pipe: Connection, options: WorkerOptions, opens: OpenEngine | None = None) -> None:
    """Entry point of the process. Returns on StopWorker, or when the front closes its end of the pipe.

    opens: opens the engine; None for `open_engine`.
    """
    limit_spinning()
    leave_out_packages()
    begin_start()
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group or control group; the front decides
    sending = threading.Lock()  # notices and signs of life come from other threads

    def notify(text: str) -> None:
        with sending:
            pipe.send(WorkerNotice(text=text))

    try:
        pipe.send(WorkerProgress(text=f"loading {options.model}…"))
        try:
            engine, threads = (opens or open_engine)(options, notify)
            ready = describe(engine, threads, options)
            machine = describe_machine(options.model, options.engine, ready.info, threads)
        except ZoetropeError as error:
            pipe.send(WorkerFailed(message=error.message, remedy=error.remedy))
            return
        end_start()
        with sending:
            pipe.send(ready)
        gc.collect()
        gc.freeze()  # model and libraries stay: looking through them again would stop the stream for tens of ms
        Worker(pipe, engine, machine, gpu_meter(ready.info.device), sending=sending).run(options.beat_s)
        engine.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the front has exited


class Worker:
    """The loop; `run_once` is one iteration."""

    def __init__(
        self,
        pipe: Connection,
        engine: Engine,
        machine: Mapping[str, object] | None = None,
        gpu: Callable[[], GpuMemory] | None = None,
        *,
        sending: threading.Lock | None = None,
    ) -> None:
        """machine: description of the machine and the engine for takes. gpu: reads the memory of the device.

        sending: held while something is sent, by others too.
        """
        self._pipe = pipe
        self._sending = sending or threading.Lock()
        self._engine = engine
        self._sessions: dict[str, WorkerSession] = {}  # oldest first
        self._turns: dict[str, None] = {}  # names, least recently admitted first
        self._gpu = gpu
        self._next_gpu_ns = 0
        self._running = True
        self._tick_ms = 0.0
        self._unproductive_ticks = 0  # consecutive ticks without a finished frame
        self._next_stats_ns = self._next_check_ns = 0
        self._machine = machine or {}
        self._preparing = PreparationWatch(engine)
        self._engine_control = Control()  # engine-wide controls, as last set by any session

    def run(self, beat_s: float = 1.0) -> None:
        """Run until StopWorker, with a sign of life every `beat_s`. Raises EOFError when the front has exited."""
        beat = Beat(self._send, beat_s)
        beat.start()
        try:
            while self._running:
                beat.stepped()
                self.run_once()
        finally:
            beat.stop()
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()
            self._turns.clear()

    def run_once(self) -> None:
        """Receive messages, push inputs, tick if anything is in flight, publish, check integrity when idle, report."""
        self._take_messages()
        self._admit(time.monotonic_ns())
        if any(session.busy for session in self._sessions.values()):
            self._tick()
        for session in tuple(self._sessions.values()):
            self._guarded(session, partial(self._publish, session))
        if not any(session.busy for session in self._sessions.values()):
            self._check_integrity(time.monotonic_ns())
        self._report(time.monotonic_ns())

    def _check_integrity(self, now_ns: int) -> None:
        """Every few seconds while idle: if the engine's state is inconsistent, end all sessions."""
        if now_ns < self._next_check_ns or not self._sessions:
            return
        self._next_check_ns = now_ns + _CHECK_PERIOD_NS
        try:
            self._engine.check_integrity()
        except AssertionError as error:
            _log.error("the engine fails its integrity check", exc_info=error)
            known = ModelError(
                "The engine's state is inconsistent, so its frames cannot be trusted.",
                "Open a new session; if that ends as well, restart Zoetrope and report what its log says.",
            )
            for session in tuple(self._sessions.values()):
                self._end(session, known)

    def _admit(self, now_ns: int) -> None:
        """Push what is due. When rows are scarce, sessions take turns."""
        for name in tuple(self._turns):
            session = self._sessions[name]
            if self._guarded(session, partial(session.admit, now_ns)):
                del self._turns[name]
                self._turns[name] = None
            self._send_if(session.admitted())

    def _take_messages(self) -> None:
        timeout_s = self._idle_s()
        while self._running and self._pipe.poll(timeout_s):
            self._handle(self._pipe.recv())
            timeout_s = 0.0

    def _idle_s(self) -> float:
        """How long to wait for a message: not at all while ticks make progress."""
        sessions = self._sessions.values()
        max_ticks = max((session.stream.info.latency_ticks + 2 for session in sessions), default=0)
        if any(session.busy for session in sessions) and self._unproductive_ticks <= max_ticks:
            return 0.0
        max_s = 0.002 if any(session.busy for session in sessions) else _MAX_WAIT_S
        now_ns = time.monotonic_ns()
        return min([max_s, *(session.wait_ns(now_ns) / 1e9 for session in sessions)])

    def _tick(self) -> None:
        """Run one tick. If it fails, end the session that caused the failure and tick the others."""
        while any(session.busy for session in self._sessions.values()):
            try:
                self._run_tick()
            except ZoetropeError as error:
                self._end(session_to_end(self._sessions.values(), error), error)
            else:
                return

    def _run_tick(self) -> None:
        recorders = [s.recorder for s in self._sessions.values() if s.recorder is not None and s.busy]
        before = self._engine.log.last_tick
        started_ns = time.perf_counter_ns()
        self._engine.tick()
        tick_ms = (time.perf_counter_ns() - started_ns) / 1e6
        self._tick_ms += (tick_ms - self._tick_ms) * (_TICK_MEAN_WEIGHT if self._tick_ms else 1.0)
        self._unproductive_ticks += 1
        self._preparing.record(self._sessions.values(), before)
        record = self._engine.log.last_tick
        for recorder in recorders:
            ran = record is not None and record is not before
            recorder.ticked(record.tick if record and ran else 0, len(record.rows) if record and ran else 0)

    def _publish(self, session: WorkerSession) -> None:
        ready = session.publish()
        self._send_if(session.records(None if ready else time.monotonic_ns()))  # the records of a frame go before it
        for message in ready:
            self._unproductive_ticks = 0
            self._send(message)

    def _report(self, now_ns: int) -> None:
        if self._gpu is not None and now_ns >= self._next_gpu_ns:
            self._next_gpu_ns = now_ns + _GPU_PERIOD_NS
            self._send(self._gpu())
        if now_ns < self._next_stats_ns:
            return
        self._next_stats_ns = now_ns + _STATS_PERIOD_NS
        self._send_if(self._preparing.report())
        for session in self._sessions.values():
            stats = session.changed_stats(self._tick_ms, self._engine.log.last_timing)
            if stats is not None:
                self._send(stats)

    def _handle(self, message: ToWorker) -> None:
        if isinstance(message, StopWorker):
            self._running = False
            return
        if isinstance(message, OpenSession):
            self._open(message)
            return
        session = self._sessions.get(message.session)
        if session is None:  # an error ended it while the message was in flight
            if isinstance(message, CloseSession):
                self._send(SessionClosed(session=message.session))
            return
        match message:
            case ChangeControl():
                self._guarded(session, partial(self._apply, session, message.control))
            case ChangeSource():
                session.change_source(prompt_only=message.prompt_only, posted=message.posted)
            case InputPosted():
                self._send(InputTaken(session=session.name))
            case StartTake():
                self._guarded(session, partial(self._start_take, session, message))
            case StopTake():
                self._send_if(session.stop_take("", message.take))
            case OutputRelease():
                session.release(message.index, message.generation)
            case CloseSession():
                self._close(session)

    def _open(self, message: OpenSession) -> None:
        try:
            stream: Stream = self._engine.open(control=message.control)
            self._share_engine_control(message.control)
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this session only
            known = error if isinstance(error, ZoetropeError) else unexpected(error)
            self._send(SessionEnded(session=message.session, message=known.message, remedy=known.remedy))
            return
        self._sessions[message.session] = WorkerSession(message, stream)
        self._turns[message.session] = None
        self._send(StreamOpened(session=message.session, info=stream.info))

    def _apply(self, session: WorkerSession, control: Control) -> None:
        try:
            session.apply(control)
            self._share_engine_control(control, session)
        except InputError as error:  # nothing was changed
            self._send(SessionNotice(session=session.name, text=str(error)))

    def _share_engine_control(self, control: Control, by: WorkerSession | None = None) -> None:
        """Keep the engine-wide controls, and apply them to the other recorded sessions so that their takes have
        them."""
        shared = Control(**{name: value for name, value in control.changes().items() if name in ENGINE_CONTROLS})
        if not shared.changes():
            return
        self._engine_control = self._engine_control.merged(shared)
        for session in self._sessions.values():
            if session is not by and session.recorder is not None:
                session.apply(self._engine_control)

    def _start_take(self, session: WorkerSession, message: StartTake) -> None:
        """Let frames in flight finish (a few ticks), then begin."""
        for _ in range(session.stream.info.latency_ticks + 2):
            if not session.busy or session.name not in self._sessions:
                break
            self._tick()
            session.collect()
        if session.name in self._sessions:
            session.start_take(message, self._engine.open, self._machine, self._engine_control)
            self._preparing.record_opening(session)
            self._send_if(session.records())

    def _stop_take(self, session: WorkerSession, reason: str) -> None:
        self._send_if(session.stop_take(reason))

    def _send_if(self, message: FromWorker | None) -> None:
        if message is not None:
            self._send(message)

    def _guarded(self, session: WorkerSession, step: Callable[[], Result]) -> Result | None:
        """Run a step of one session. An error ends that session only; then None is returned."""
        try:
            return step()
        except ZoetropeError as error:
            self._end(session, error)
        except (OSError, EOFError):  # of the pipe: the front has exited
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it ends this session only
            self._end(session, unexpected(error))
        return None

    def _end(self, session: WorkerSession, error: ZoetropeError) -> None:
        self._stop_take(session, error.message)
        self._send(session.stats(self._tick_ms))
        del self._sessions[session.name], self._turns[session.name]
        session.close()
        self._send(SessionEnded(session=session.name, message=error.message, remedy=error.remedy))

    def _close(self, session: WorkerSession) -> None:
        self._stop_take(session, "the session was closed")
        self._send(session.stats(self._tick_ms))
        del self._sessions[session.name], self._turns[session.name]
        session.close()
        self._send(SessionClosed(session=session.name))

    def _send(self, message: FromWorker | WorkerAlive) -> None:
        with self._sending:
            self._pipe.send(message)


def session_to_end(sessions: Collection[WorkerSession], error: ZoetropeError) -> WorkerSession:
    """Return the session whose stream failed. If unknown (memory ran out for all of them): the one with the most frames
    in flight, and among equals the newest, since ticks succeeded before it was opened.

    sessions: at least one, oldest first.
    """
    if isinstance(error, StreamError):
        for session in sessions:
            if session.stream is error.stream:
                return session
    busy = [session for session in sessions if session.busy] or list(sessions)
    return max(reversed(busy), key=lambda session: session.stream.accounting.in_flight)


def unexpected(error: Exception) -> ModelError:
    """Log an exception other than ZoetropeError that ends one session. Returns the error to report to its user."""
    _log.error("an unexpected error ends a session", exc_info=error)
    return ModelError(f"The stream failed: {type(error).__name__}: {error}", "Open a new session.")
