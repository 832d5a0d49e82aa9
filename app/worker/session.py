"""One session inside the worker: its stream, its mailbox, its output buffers, and the exact count of its frames.

Lives on the worker's only thread. Knows no pipe: it returns messages for the worker to send.
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
    """Feeds one stream and hands out its frames.

    Live input is a one-slot mailbox: a newer frame replaces the one that waits, and the replaced one counts as dropped.
    Prompt-only frames are asked for at the stream's own rate, never faster. The frames of a video's chunk are paced.
    """

    def __init__(self, message: OpenSession, stream: Stream) -> None:
        self.name = message.session
        self.stream = stream
        self._prompt_only = message.prompt_only
        self._inputs = InputMailbox(FrameBuffers.attach(message.inputs))
        self._outputs = OutputPool(FrameBuffers.attach(message.outputs))
        self._pacer = Pacer() if stream.info.max_frames > 1 else None
        self._finished: deque[Frame] = deque()  # pulled, and due, waiting for an output buffer
        self._seen_generation = 0
        self._seen = 0  # inputs that the worker knows of
        self._generated = 0
        self._waiting: Frame | None = None  # the newest input, refused by the stream so far
        self._waiting_ns = 0  # when it was found in the mailbox
        self._dropped = 0
        self._out = 0
        self._skipped = self._made = 0  # by streams before this one
        self._recorder: Recorder | None = None
        self._take = 0  # the number of the recorder's
        self._unrecorded = 0  # the first of `_finished` and of the pacer's that came before the take
        self._next_due_ns = 0
        self._reported: SessionStats | None = None
        self._wait_ms = 0.0  # of the input admitted last
        self._admitted_ns: int | None = None  # when that was captured, until it is told

    @property
    def busy(self) -> bool:
        """Something is in the stream that ticks bring on."""
        return self.stream.busy

    def change_source(self, *, prompt_only: bool, posted: int) -> None:
        """Switch between the mailbox and the prompt alone; what waits to be admitted is dropped and counted.

        posted: inputs that were there when it was asked for; one that came later is for the new source.
        """
        self._look(time.monotonic_ns())
        if self._seen_generation <= posted:
            self._drop_waiting()
        self._prompt_only = prompt_only
        if self._recorder is not None:
            self._recorder.sourced(self._inputs.buffers.newest, prompt_only=prompt_only)

    def apply(self, control: Control) -> None:
        """Change the stream's controls. Raises InputError; then nothing is changed."""
        tick = self.stream.apply(control)
        if self._recorder is not None:
            self._recorder.changed(control, tick, self._inputs.buffers.newest)

    def admit(self, now_ns: int) -> bool:
        """Offer the stream what is due: the newest input, or one more chunk from the prompt. Whether it took any."""
        if self._prompt_only:
            return self._generate(now_ns)
        self._look(now_ns)
        if self._waiting is not None and self._push(self._waiting):
            self._wait_ms = (now_ns - self._waiting_ns) / 1e6
            self._admitted_ns = self._waiting.captured_ns
            self._waiting = None
            return True
        return False

    def admitted(self) -> InputAdmitted | None:
        """The input that was admitted since this was last asked."""
        captured_ns, self._admitted_ns = self._admitted_ns, None
        return None if captured_ns is None else InputAdmitted(session=self.name, captured_ns=captured_ns)

    # ---- the take ----

    def start_take(
        self, message: StartTake, open_stream: Callable[[Control], Stream], machine: Mapping[str, object], wide: Control
    ) -> None:
        """Go on with a fresh stream of the same controls and tell all that happens to it.

        Frames depend on the number of their slot, on walks and transitions under way and on what the similarity filter
        saw last: a take therefore begins with nothing of that. What is in flight is dropped, and counted.
        wide: controls that hold for the whole engine.
        """
        self.collect()
        self._drop_waiting()
        counts, control = self.stream.accounting, complete_control(self.stream)
        self._skipped += counts.skipped
        self._made += counts.made
        self._dropped += counts.dropped + counts.in_flight
        self.stream.close()
        control = control.merged(wide)
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
        """Tell no more (of that take; None: of whichever runs). Returns the last records; None: it does not run."""
        if self._recorder is None or take not in (None, self._take):
            return None
        self._recorder.stopped(reason)
        last = TakeRecords(session=self.name, take=self._take, records=self._recorder.take_batch())
        self._recorder = None
        return last

    @property
    def recorder(self) -> Recorder | None:
        """Where to tell what happens to the whole engine; None: this session is not being recorded."""
        return self._recorder

    def records(self, now_ns: int | None = None) -> TakeRecords | None:
        """What is to be sent of the take: all there is, or (with now_ns) only a batch that is full or old enough."""
        recorder = self._recorder
        if recorder is None or (now_ns is not None and not recorder.due(now_ns)):
            return None
        batch: tuple[TakeRecord, ...] = recorder.take_batch()
        return TakeRecords(session=self.name, take=self._take, records=batch) if batch else None

    # ---- the output ----

    @property
    def _paced(self) -> int:
        """Finished frames whose time has not come."""
        return 0 if self._pacer is None else len(self._pacer)

    def collect(self) -> None:
        """Take what the stream has finished."""
        frames = self.stream.pull()
        if self._pacer is None:
            self._finished.extend(frames)
            return
        now_ns = time.monotonic_ns()
        for lost in self._pacer.add(frames, now_ns, max_frames=self.stream.info.max_frames):
            self._lose(lost, ahead=len(self._finished))
        while (frame := self._pacer.due(now_ns)) is not None:
            self._pacer.leave()
            self._finished.append(frame)

    def wait_ns(self, now_ns: int) -> int:
        """How long nothing needs doing if no message comes: until a frame is due, or one is to be asked for."""
        if self._pacer is not None:
            return self._pacer.wait_ns(now_ns, asks=self._prompt_only and not self.stream.busy)
        return max(0, self._next_due_ns - now_ns) if self._prompt_only else 1_000_000_000

    def _lose(self, frame: Frame, *, ahead: int) -> None:
        """A finished frame was dropped. ahead: finished frames before it that were not."""
        if self._unrecorded > ahead:
            self._unrecorded -= 1
        elif self._recorder is not None:
            self._recorder.lost(frame.seq)
        self._dropped += 1

    def publish(self) -> list[OutputReady]:
        """Move finished frames to free output buffers. Without room the oldest are dropped and counted."""
        self.collect()
        ready = []
        while self._finished and (place := self._outputs.put(self._finished[0])) is not None:
            take = self._take if self._recorder is not None and not self._unrecorded else 0
            self._finished.popleft()
            self._unrecorded = max(0, self._unrecorded - 1)
            self._out += 1
            ready.append(OutputReady(session=self.name, index=place[0], generation=place[1], take=take))
        while len(self._finished) > self._outputs.buffers.spec.count:
            self._lose(self._finished.popleft(), ahead=0)
        return ready

    def release(self, index: int, generation: int) -> None:
        """An output buffer is free again."""
        self._outputs.release(index, generation)

    def stats(self, tick_ms: float, timing: TimingRecord | None = None) -> SessionStats:
        """The count of every frame, each term counted on its own. timing: the engine's last.

        Frames that a stage made count as generated, those that it dropped as dropped.
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
        )

    def changed_stats(self, tick_ms: float, timing: TimingRecord | None = None) -> SessionStats | None:
        """`stats`, or None when nothing has changed since the last call."""
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
        """The inputs posted up to now will not be offered."""
        self._look(time.monotonic_ns())
        if self._waiting is not None:
            self._waiting = None
            self._dropped += 1

    def _look(self, now_ns: int) -> None:
        """Take the newest input from the mailbox; those it replaced count as dropped."""
        taken = self._inputs.take(self._seen_generation)
        if taken is None:
            return
        generation, frame = taken
        arrived = generation - self._seen_generation
        self._dropped += arrived - 1 + (self._waiting is not None)
        self._seen += arrived
        self._seen_generation = generation
        self._waiting, self._waiting_ns = frame, now_ns

    def _generate(self, now_ns: int) -> bool:
        if self._pacer is not None:
            return self._generate_chunk(self._pacer, now_ns)
        if now_ns < self._next_due_ns or not self._ask(now_ns):
            return False
        info = self.stream.info
        period_ns = int(1e9 * info.frames_per_chunk / info.generate_rate)
        late = now_ns - self._next_due_ns > period_ns  # behind: go on from now instead of catching up
        self._next_due_ns = (now_ns if late else self._next_due_ns) + period_ns
        return True

    def _generate_chunk(self, pacer: Pacer, now_ns: int) -> bool:
        """One chunk at a time, when it will be needed."""
        if self.stream.busy or not pacer.wants_more(now_ns):
            return False
        if not self._ask(now_ns):
            pacer.refused(now_ns)
            return False
        pacer.asked(now_ns)
        return True

    def _ask(self, now_ns: int) -> bool:
        """Ask the stream for a chunk from the prompt alone."""
        frames = self.stream.info.frames_per_chunk
        if not self.stream.generate(frames):
            return False
        self._generated += frames
        if self._recorder is not None:
            self._recorder.generated(frames, now_ns)
        return True
