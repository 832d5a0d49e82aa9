"""One session inside the worker: its stream, its mailbox, its output buffers, and the exact count of its frames.

Lives on the worker's only thread. Knows no pipe: it returns messages for the worker to send.
"""

from __future__ import annotations

import time
from collections import deque

from pipelines.ticklog import TimingRecord
from pipelines.types import Frame, Stream

from .frames import FrameBuffers, InputMailbox, OutputPool
from .messages import OpenSession, OutputReady, SessionStats


class WorkerSession:
    """Feeds one stream and hands out its frames.

    Live input is a one-slot mailbox: a newer frame replaces the one that waits, and the replaced one counts as dropped.
    Prompt-only frames are asked for at the stream's own rate, never faster.
    """

    def __init__(self, message: OpenSession, stream: Stream) -> None:
        self.name = message.session
        self.stream = stream
        self._prompt_only = message.prompt_only
        self._inputs = InputMailbox(FrameBuffers.attach(message.inputs))
        self._outputs = OutputPool(FrameBuffers.attach(message.outputs))
        self._finished: deque[Frame] = deque()  # pulled, waiting for an output buffer
        self._seen_generation = 0
        self._seen = 0  # inputs that the worker knows of
        self._generated = 0
        self._waiting: Frame | None = None  # the newest input, refused by the stream so far
        self._waiting_ns = 0  # when it was found in the mailbox
        self._dropped = 0
        self._out = 0
        self._next_due_ns = 0
        self._reported: SessionStats | None = None
        self._wait_ms = 0.0  # of the input admitted last

    @property
    def busy(self) -> bool:
        """Something is in the stream: ticks bring it on."""
        return self.stream.accounting.in_flight > 0

    def change_source(self, *, prompt_only: bool) -> None:
        """Switch between the mailbox and the prompt alone; what waits to be admitted is dropped and counted."""
        self._look(time.monotonic_ns())
        if self._waiting is not None:
            self._waiting = None
            self._dropped += 1
        self._prompt_only = prompt_only

    def admit(self, now_ns: int) -> None:
        """Offer the stream what is due: the newest input, or one more chunk from the prompt."""
        if self._prompt_only:
            self._generate(now_ns)
            return
        self._look(now_ns)
        if self._waiting is not None and self.stream.push(self._waiting):
            self._wait_ms = (now_ns - self._waiting_ns) / 1e6
            self._waiting = None

    def wait_ns(self, now_ns: int) -> int:
        """How long nothing needs doing if no message comes: until the next prompt-only frame is due."""
        return max(0, self._next_due_ns - now_ns) if self._prompt_only else 1_000_000_000

    def publish(self) -> list[OutputReady]:
        """Move finished frames to free output buffers. Without room the oldest are dropped and counted."""
        self._finished.extend(self.stream.pull())
        ready = []
        while self._finished and (place := self._outputs.put(self._finished[0])) is not None:
            self._finished.popleft()
            self._out += 1
            ready.append(OutputReady(session=self.name, index=place[0], generation=place[1]))
        while len(self._finished) > self._outputs.buffers.spec.count:
            self._finished.popleft()
            self._dropped += 1
        return ready

    def release(self, index: int, generation: int) -> None:
        """An output buffer is free again."""
        self._outputs.release(index, generation)

    def stats(self, tick_ms: float, timing: TimingRecord | None = None) -> SessionStats:
        """The count of every frame, each term counted on its own. timing: the engine's last."""
        counts = self.stream.accounting
        return SessionStats(
            session=self.name,
            seen=self._seen,
            generated=self._generated,
            out=self._out,
            dropped=self._dropped,
            skipped=counts.skipped,
            in_flight=counts.in_flight + len(self._finished) + (self._waiting is not None),
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

    def _generate(self, now_ns: int) -> None:
        if now_ns < self._next_due_ns:
            return
        info = self.stream.info
        if not self.stream.generate(info.frames_per_chunk):
            return
        self._generated += info.frames_per_chunk
        period_ns = int(1e9 * info.frames_per_chunk / info.frame_rate)
        late = now_ns - self._next_due_ns > period_ns  # behind: go on from now instead of catching up
        self._next_due_ns = (now_ns if late else self._next_due_ns) + period_ns
