"""A tiny engine that obeys the contract: frames come out inverted after some ticks, pushes may be refused or skipped.

Knows no model. `skip` names input frames (by seq) that the similarity filter is to swallow; the first is never skipped.
`calls` counts what a test wants to know.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np

from pipelines.core.controls import Control, Controls
from pipelines.core.tick_log import TickLog
from pipelines.core.types import Accounting, Frame, StreamInfo


@dataclass(slots=True, kw_only=True)
class FakeEngine:
    """width, height: pixels. delay_ticks: ticks until a frame is finished. slots: pushes taken before one is refused.
    tick_s: seconds that a tick takes. fail_at_tick: raise RuntimeError there."""

    width: int = 64
    height: int = 48
    delay_ticks: int = 2
    slots: int = 3
    tick_s: float = 0.0
    skip: Callable[[int], bool] = lambda seq: False
    fail_at_tick: int | None = None
    ticks: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    streams: list[FakeStream] = field(default_factory=list)
    log: TickLog = field(default_factory=TickLog)

    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> FakeStream:
        stream = FakeStream(self, control or Control(), frame_rate or Fraction(24))
        self.streams.append(stream)
        return stream

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self.fail_at_tick:
            raise RuntimeError("the fake engine fails here")
        time.sleep(self.tick_s)
        for stream in self.streams:
            stream.advance()

    def check_integrity(self) -> None:
        for stream in self.streams:
            assert stream.accounting.balanced, stream.accounting

    def close(self) -> None:
        self.calls["close"] += 1


class FakeStream:
    """Outputs are the inputs inverted; prompt-only frame k is a picture of value 3 k."""

    def __init__(self, engine: FakeEngine, control: Control, frame_rate: Fraction) -> None:
        self._engine = engine
        self._controls = Controls().updated(control)
        self._frame_rate = frame_rate
        self._chunk_schedule: deque[tuple[int, Frame]] = deque()
        self._finished: list[Frame] = []
        self._taken = self._out = self._skipped = 0

    @property
    def info(self) -> StreamInfo:
        return StreamInfo(
            width=self._engine.width,
            height=self._engine.height,
            frame_rate=self._frame_rate,
            frames_per_chunk=1,
            latency_ticks=self._engine.delay_ticks,
            model="fake",
            dtype="uint8",
            device="cpu",
            backend="fake",
        )

    @property
    def accounting(self) -> Accounting:
        chunk_schedule = len(self._chunk_schedule) + len(self._finished)
        return Accounting(taken=self._taken, out=self._out, skipped=self._skipped, in_flight=chunk_schedule)

    @property
    def busy(self) -> bool:
        return self.accounting.in_flight > 0

    @property
    def controls(self) -> Controls:
        return self._controls

    def push(self, frame: Frame) -> bool:
        assert frame.image.shape == (self._engine.height, self._engine.width, 3)
        assert frame.image.flags.c_contiguous
        if len(self._chunk_schedule) >= self._engine.slots:
            self._engine.calls["refused"] += 1
            return False
        self._taken += 1
        if self._taken > 1 and self._controls.similarity_filter and self._engine.skip(frame.seq):
            self._skipped += 1
            return True
        return self._admit(replace(frame, image=np.invert(frame.image), source_seq=frame.seq))

    def generate(self, frames: int = 1) -> bool:
        if len(self._chunk_schedule) + frames > self._engine.slots:
            self._engine.calls["refused"] += 1
            return False
        for _ in range(frames):
            image = np.full((self._engine.height, self._engine.width, 3), 3 * self._taken % 256, np.uint8)
            self._admit(Frame(image=image, pts=self._taken, time_base=1 / self._frame_rate, seq=self._taken))
            self._taken += 1
        return True

    def apply(self, control: Control) -> int:
        self._controls = self._controls.updated(control)
        return self._engine.ticks

    def pull(self) -> list[Frame]:
        frames = [replace(frame, seq=self._out + i) for i, frame in enumerate(self._finished)]
        self._finished.clear()
        self._out += len(frames)
        return frames

    def flush(self) -> list[Frame]:
        while self._chunk_schedule:
            self._engine.tick()
        return self.pull()

    def reset(self) -> None:
        self._chunk_schedule.clear()
        self._finished.clear()
        self._taken = self._out = self._skipped = 0

    def close(self) -> None:
        self._engine.calls["stream close"] += 1
        if self in self._engine.streams:
            self._engine.streams.remove(self)

    def advance(self) -> None:
        """Called by the engine's tick."""
        while self._chunk_schedule and self._chunk_schedule[0][0] <= self._engine.ticks:
            self._finished.append(self._chunk_schedule.popleft()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit(self, frame: Frame) -> bool:
        self._chunk_schedule.append((self._engine.ticks + self._engine.delay_ticks, frame))
        return True
