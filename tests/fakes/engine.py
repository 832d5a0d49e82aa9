"""A tiny engine that fulfils the contract: it inverts frames within some ticks, and may refuse or skip pushes.

Independent of models. `skip` selects input frames (by seq) that the similarity filter skips; the first is never
skipped. `calls` counts refusals and closes.
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
from pipelines.core.preparation import NoPreparation, Preparation
from pipelines.core.tick_log import TickLog
from pipelines.core.types import Accounting, Frame, ReuseReport, StreamInfo


@dataclass(slots=True, kw_only=True)
class FakeEngine:
    """width, height: in pixels. delay_ticks: ticks until a frame is finished. slots: frames in flight above which
    pushes are refused. tick_s: duration of a tick. fail_at_tick: the tick that raises RuntimeError."""

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
    preparation: Preparation = field(default_factory=NoPreparation)

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
    """Inverts inputs; prompt-only frame k is a picture filled with 3 k (modulo 256)."""

    def __init__(self, engine: FakeEngine, control: Control, frame_rate: Fraction) -> None:
        self._engine = engine
        self._controls = Controls().updated(control)
        self._frame_rate = frame_rate
        self._in_flight: deque[tuple[int, Frame]] = deque()
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
    def reuse(self) -> ReuseReport | None:
        """Nothing is taken over."""
        return None

    @property
    def accounting(self) -> Accounting:
        in_flight = len(self._in_flight) + len(self._finished)
        return Accounting(taken=self._taken, out=self._out, skipped=self._skipped, in_flight=in_flight)

    @property
    def busy(self) -> bool:
        return self.accounting.in_flight > 0

    @property
    def controls(self) -> Controls:
        return self._controls

    def push(self, frame: Frame) -> bool:
        assert frame.image.shape == (self._engine.height, self._engine.width, 3)
        assert frame.image.flags.c_contiguous
        if len(self._in_flight) >= self._engine.slots:
            self._engine.calls["refused"] += 1
            return False
        self._taken += 1
        if self._taken > 1 and self._controls.similarity_filter and self._engine.skip(frame.seq):
            self._skipped += 1
            return True
        return self._admit(replace(frame, image=np.invert(frame.image), source_seq=frame.seq))

    def generate(self, frames: int = 1) -> bool:
        if len(self._in_flight) + frames > self._engine.slots:
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
        while self._in_flight:
            self._engine.tick()
        return self.pull()

    def reset(self) -> None:
        self._in_flight.clear()
        self._finished.clear()
        self._taken = self._out = self._skipped = 0

    def close(self) -> None:
        self._engine.calls["stream close"] += 1
        if self in self._engine.streams:
            self._engine.streams.remove(self)

    def advance(self) -> None:
        """Finish the frames that are due; called by the engine's tick."""
        while self._in_flight and self._in_flight[0][0] <= self._engine.ticks:
            self._finished.append(self._in_flight.popleft()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _admit(self, frame: Frame) -> bool:
        self._in_flight.append((self._engine.ticks + self._engine.delay_ticks, frame))
        return True
