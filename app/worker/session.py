"""One session inside the worker: its stream, its mailbox, its output buffers, and the exact count of its frames.

Runs on the worker's only thread. Independent of the pipe: it returns messages for the worker to send.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from app.takes.recorder import Recorder, complete_control
from app.takes.records import TakeRecord
from pipelines.core.contracts import Stream
from pipelines.core.controls import Control
from pipelines.core.tick_log import TimingRecord
from pipelines.core.types import Frame

from .messages import InputAdmitted, OpenSession, OutputReady, SessionStats, StartTake, TakeRecords
from .pacer import Pacer
from .shared_frames import FrameBuffers, InputMailbox, OutputPool


class WorkerSession:
    """Feeds one stream and publishes its frames.

    Live input is a one-slot mailbox: a newer frame replaces the waiting one, which counts as dropped. Prompt-only
    frames are requested at the stream's own rate, never faster. The frames of a video chunk are paced.
    """

    def __init__(self, message: OpenSession, stream: Stream) -> None:
        self.name = message.session
        self.stream = stream
        self._prompt_only = message.prompt_only
        self._inputs = InputMailbox(FrameBuffers.attach(message.inputs))
        self._outputs = OutputPool(FrameBuffers.attach(message.outputs))
        self._pacer = Pacer() if stream.info.max_frames > 1 else None
        self._finished: deque[Frame] = deque()  # pulled and due; waiting for an output buffer
        self._seen_generation = 0
        self._seen = 0  # inputs noticed in the mailbox
        self._generated = 0
        self._waiting: Frame | None = None  # the newest input, not yet accepted by the stream
        self._waiting_ns = 0  # when it was noticed in the mailbox
        self._dropped = 0
        self._out = 0
        self._skipped = self._made = 0  # by earlier streams
        self._recorder: Recorder | None = None
        self._take = 0  # number of the current or last one
        self._unrecorded = 0  # how many frames of `_finished` and the pacer precede the take
        self._next_due_ns = 0
        self._reported: SessionStats | None = None
        self._wait_ms = 0.0  # of the last admitted input
        self._admitted_ns: int | None = None  # when it was captured; None once reported

    @property
    def busy(self) -> bool:
        """Whether ticks advance anything in the stream."""
        return self.stream.busy

    def change_source(self, *, prompt_only: bool, posted: int) -> None:
        """Switch between the mailbox and the prompt alone. A waiting input is dropped and counted.

        posted: number of inputs posted before the request; a later one belongs to the new source and is kept.
        """
        self._poll_mailbox(time.monotonic_ns())
        if self._seen_generation <= posted:
            self._drop_waiting()
        self._prompt_only = prompt_only
        if self._recorder is not None:
            self._recorder.sourced(self._inputs.buffers.newest, prompt_only=prompt_only)

    def apply(self, control: Control) -> None:
        """Change the stream's controls. Raises InputError without changing anything."""
        tick = self.stream.apply(control)
        if self._recorder is not None:
            self._recorder.changed(control, tick, self._inputs.buffers.newest)

    def admit(self, now_ns: int) -> bool:
        """Push what is due: the newest input, or a chunk from the prompt. Returns whether the stream accepted it."""
        if self._prompt_only:
            return self._generate(now_ns)
        self._poll_mailbox(now_ns)
        if self._waiting is not None and self._push(self._waiting):
            self._wait_ms = (now_ns - self._waiting_ns) / 1e6
            self._admitted_ns = self._waiting.captured_ns
            self._waiting = None
            return True
        return False

    def admitted(self) -> InputAdmitted | None:
        """Report the last input admitted since the previous call; None if there is none."""
        captured_ns, self._admitted_ns = self._admitted_ns, None
        return None if captured_ns is None else InputAdmitted(session=self.name, captured_ns=captured_ns)

    # ---- the take ----

    def start_take(
        self,
        message: StartTake,
        open_stream: Callable[[Control], Stream],
        machine: Mapping[str, object],
        engine_control: Control,
    ) -> None:
        """Replace the stream by a new one with the same controls and record everything that happens to it.

        Frames depend on the number of their slot, on walks and transitions in progress and on the similarity filter's
        last frame, so a take begins without any of those. Frames in flight are dropped and counted.
        engine_control: engine-wide controls.
        """
        self.collect()
        self._drop_waiting()
        counts, control = self.stream.accounting, complete_control(self.stream)
        self._skipped += counts.skipped
        self._made += counts.made
        self._dropped += counts.dropped + counts.in_flight
        self.stream.close()
        control = control.merged(engine_control)
        self.stream = open_stream(control)
        self._unrecorded = len(self._finished) + self._paced
        self._recorder, self._take = Recorder(message.first_seq), message.take
        self._recorder.opened(
            self.stream.info,
            control,
            machine,
            prompt_only=self._prompt_only,
            posted=self._inputs.buffers.newest,
        )

    def stop_take(self, reason: str, take: int | None = None) -> TakeRecords | None:
        """Stop recording that take (None: the current one). Returns the last records; None if it is not running."""
        if self._recorder is None or take not in (None, self._take):
            return None
        self._recorder.stopped(reason)
        last = TakeRecords(session=self.name, take=self._take, records=self._recorder.take_batch())
        self._recorder = None
        return last

    @property
    def recorder(self) -> Recorder | None:
        """Records what happens to the whole engine; None if the session is not being recorded."""
        return self._recorder

    def records(self, now_ns: int | None = None) -> TakeRecords | None:
        """Return records to send: all, or with `now_ns` only a batch that is full or old enough. None if there are
        none."""
        recorder = self._recorder
        if recorder is None or (now_ns is not None and not recorder.due(now_ns)):
            return None
        batch: tuple[TakeRecord, ...] = recorder.take_batch()
        return TakeRecords(session=self.name, take=self._take, records=batch) if batch else None

    # ---- the output ----

    @property
    def _paced(self) -> int:
        """Number of finished frames that are not due yet."""
        return 0 if self._pacer is None else len(self._pacer)

    def collect(self) -> None:
        """Pull finished frames from the stream, through the pacer if there is one."""
        frames = self.stream.pull()
        if self._pacer is None:
            self._finished.extend(frames)
            return
        now_ns = time.monotonic_ns()
        for dropped in self._pacer.add(frames, now_ns, max_frames=self.stream.info.max_frames):
            self._drop_finished(dropped, ahead=len(self._finished))
        while (frame := self._pacer.due(now_ns)) is not None:
            self._pacer.release()
            self._finished.append(frame)

    def wait_ns(self, now_ns: int) -> int:
        """How long there is nothing to do unless a message arrives: until a frame is due or is to be requested."""
        if self._pacer is not None:
            return self._pacer.wait_ns(now_ns, requests=self._prompt_only and not self.stream.busy)
        return max(0, self._next_due_ns - now_ns) if self._prompt_only else 1_000_000_000

    def _drop_finished(self, frame: Frame, *, ahead: int) -> None:
        """Count a dropped finished frame. ahead: number of earlier finished frames that are kept."""
        if self._unrecorded > ahead:
            self._unrecorded -= 1
        elif self._recorder is not None:
            self._recorder.lost(frame.seq)
        self._dropped += 1

    def publish(self) -> list[OutputReady]:
        """Move finished frames to free output buffers. Beyond a queue of one frame per buffer the oldest are
        dropped."""
        self.collect()
        ready = []
        while self._finished and (buffer := self._outputs.put(self._finished[0])) is not None:
            take = self._take if self._recorder is not None and not self._unrecorded else 0
            self._finished.popleft()
            self._unrecorded = max(0, self._unrecorded - 1)
            self._out += 1
            ready.append(OutputReady(session=self.name, index=buffer[0], generation=buffer[1], take=take))
        while len(self._finished) > self._outputs.buffers.spec.count:
            self._drop_finished(self._finished.popleft(), ahead=0)
        return ready

    def release(self, index: int, generation: int) -> None:
        """Free an output buffer."""
        self._outputs.release(index, generation)

    def stats(self, tick_ms: float, timing: TimingRecord | None = None) -> SessionStats:
        """Return the frame counts; every term is counted independently. timing: the engine's last.

        Frames that a stage added count as generated, those that it dropped as dropped.
        """
        counts = self.stream.accounting
        return SessionStats(
            session=self.name,
            seen=self._seen,
            generated=self._generated + self._made + counts.made,
            out=self._out,
            dropped=self._dropped + counts.dropped,
            skipped=self._skipped + counts.skipped,
            in_flight=counts.in_flight + len(self._finished) + self._paced + (self._waiting is not None),
            tick_ms=round(tick_ms, 2),
            wait_ms=round(self._wait_ms, 2),
            encode_ms=round(timing.encode_ms, 2) if timing else 0.0,
            denoise_ms=round(timing.denoise_ms, 2) if timing else 0.0,
            decode_ms=round(timing.decode_ms, 2) if timing else 0.0,
            reuse=self.stream.reuse,
        )

    def changed_stats(self, tick_ms: float, timing: TimingRecord | None = None) -> SessionStats | None:
        """`stats`, or None if nothing has changed since the last call."""
        stats = self.stats(tick_ms, timing)
        if stats == self._reported:
            return None
        self._reported = stats
        return stats

    def close(self) -> None:
        """Close the stream and detach from the shared memory."""
        self.stream.close()
        self._inputs.buffers.close()
        self._outputs.buffers.close()

    def _push(self, frame: Frame) -> bool:
        recorder = self._recorder
        if recorder is None:
            return self.stream.push(frame)
        skipped = self.stream.accounting.skipped
        taken = self.stream.push(frame)
        was_skipped = self.stream.accounting.skipped > skipped
        recorder.pushed(frame.seq, "refused" if not taken else "skipped" if was_skipped else "accepted")
        return taken

    def _drop_waiting(self) -> None:
        """Drop the input that waits, in the mailbox too."""
        self._poll_mailbox(time.monotonic_ns())
        if self._waiting is not None:
            self._waiting = None
            self._dropped += 1

    def _poll_mailbox(self, now_ns: int) -> None:
        """Take the newest input from the mailbox. Those that it replaced count as dropped."""
        taken = self._inputs.take(self._seen_generation)
        if taken is None:
            return
        generation, frame = taken
        posted = generation - self._seen_generation
        self._dropped += posted - 1 + (self._waiting is not None)
        self._seen += posted
        self._seen_generation = generation
        self._waiting, self._waiting_ns = frame, now_ns

    def _generate(self, now_ns: int) -> bool:
        if self._pacer is not None:
            return self._generate_chunk(self._pacer, now_ns)
        if now_ns < self._next_due_ns or not self._request(now_ns):
            return False
        info = self.stream.info
        period_ns = int(1e9 * info.frames_per_chunk / info.generate_rate)
        late = now_ns - self._next_due_ns > period_ns  # continue from now instead of catching up
        self._next_due_ns = (now_ns if late else self._next_due_ns) + period_ns
        return True

    def _generate_chunk(self, pacer: Pacer, now_ns: int) -> bool:
        """Request one chunk at a time, in time for the pacer."""
        if self.stream.busy or not pacer.should_request(now_ns):
            return False
        if not self._request(now_ns):
            pacer.refused(now_ns)
            return False
        pacer.requested(now_ns)
        return True

    def _request(self, now_ns: int) -> bool:
        """Request a chunk from the prompt alone. Returns whether the stream accepted."""
        frames = self.stream.info.frames_per_chunk
        if not self.stream.generate(frames):
            return False
        self._generated += frames
        if self._recorder is not None:
            self._recorder.generated(frames, now_ns)
        return True
