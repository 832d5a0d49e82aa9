"""Owns the identity engine, which returns frames unchanged after a fixed number of ticks.

It is the smallest complete implementation of the Engine and Stream contracts, for transports, the page and tests.
Independent of networks and tensors; never imports torch. Controls are stored and reported but change no picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from .core.controls import Control, Controls
from .core.errors import InputError
from .core.frame_stages import StageChain
from .core.preparation import NoPreparation
from .core.tick_log import TickLog
from .core.types import Accounting, Frame, ReuseReport, StreamInfo
from .stages.table import StageSetting, make_stages

IDENTITY = "identity"
"""The name of its only model."""


@dataclass(slots=True, kw_only=True)
class _Slot:
    """One frame in flight. done_ticks: ticks completed; the frame is finished after latency_ticks + 1."""

    frame: Frame
    done_ticks: int = 0


class IdentityEngine:
    """An engine whose model is the identity. A small model without a tensor library may subclass it: see `draw`.

    model: its name, as reported by streams. width, height: the size that `push` takes, in pixels. latency_ticks: ticks
    between the one that admits a frame and the one that finishes it (0: the same tick). max_slots: rows shared by all
    streams. stages: names in stages.table. Raises InputError for a value that is too small or an unknown stage.
    """

    def __init__(
        self,
        *,
        model: str = IDENTITY,
        width: int = 192,
        height: int = 192,
        latency_ticks: int = 1,
        max_slots: int = 8,
        stages: Sequence[str] = (),
    ) -> None:
        for name, value, minimum in (
            ("width", width, 1),
            ("height", height, 1),
            ("latency_ticks", latency_ticks, 0),
            ("max_slots", max_slots, 1),
        ):
            if value < minimum:
                raise InputError(f"{name} cannot be {value}.", f"Give {minimum} or more.")
        self.model = model
        self.width = width
        self.height = height
        self.latency_ticks = latency_ticks
        self.max_slots = max_slots
        self.ticks = 0
        self._streams: list[IdentityStream] = []
        self.log = TickLog()  # stays empty: nothing is batched
        self.preparation = NoPreparation()
        self.make_stages = make_stages(stages, StageSetting(width=width, height=height, device="cpu"))

    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> IdentityStream:
        """Open a stream. frame_rate: of prompt-only frames, in frames per second (default 24)."""
        stream = IdentityStream(self, control or Control(), frame_rate or Fraction(24))
        self._streams.append(stream)
        return stream

    def tick(self) -> None:
        """Advance every frame in flight by one tick."""
        self.ticks += 1
        for stream in self._streams:
            stream.advance()

    def draw(self, image: npt.NDArray[np.uint8], controls: Controls) -> npt.NDArray[np.uint8]:
        """Return the finished picture of a frame, of the same shape and dtype; the identity returns `image` itself.

        controls: of its stream at the tick that finishes it. A subclass must not write to `image`.
        """
        return image

    def check_integrity(self) -> None:
        """Assert that the counts of frames and rows are consistent."""
        assert self.free_slots >= 0, (self.free_slots, self.max_slots)
        for stream in self._streams:
            assert stream.accounting.balanced, stream.accounting

    def close(self) -> None:
        """Close all streams."""
        for stream in tuple(self._streams):
            stream.close()

    @property
    def free_slots(self) -> int:
        """Number of rows that no stream uses."""
        return self.max_slots - sum(stream.slots for stream in self._streams)

    def forget(self, stream: IdentityStream) -> None:
        """Remove a stream; called by streams when they close."""
        if stream in self._streams:
            self._streams.remove(stream)


class IdentityStream:
    """One sequence of frames inside an `IdentityEngine`. See core.contracts.Stream for the contract of every method."""

    def __init__(self, engine: IdentityEngine, control: Control, frame_rate: Fraction) -> None:
        self._engine = engine
        self._controls = Controls().updated(control)
        self._frame_rate = frame_rate
        self._slots: deque[_Slot] = deque()
        self._finished: deque[Frame] = deque()
        self._stages = [make() for make in engine.make_stages]
        self._chain = StageChain(self._stages)
        self._taken = self._generated = 0
        self._closed = False

    @property
    def info(self) -> StreamInfo:
        own = StreamInfo(
            width=self._engine.width,
            height=self._engine.height,
            frame_rate=self._frame_rate,
            frames_per_chunk=1,
            latency_ticks=self._engine.latency_ticks,
            model=self._engine.model,
            dtype="uint8",
            device="cpu",
            backend=self._engine.model,
            stages=tuple(stage.name for stage in self._stages),
        )
        return self._chain.described(own, chunk_ticks=1)

    @property
    def reuse(self) -> ReuseReport | None:
        """Nothing is taken over."""
        return None

    @property
    def accounting(self) -> Accounting:
        chain = self._chain
        in_flight = len(self._slots) + len(self._finished) + chain.held
        counts = Accounting(taken=self._taken, out=chain.out, skipped=0, in_flight=in_flight)
        return replace(counts, made=chain.made, dropped=chain.dropped)

    @property
    def busy(self) -> bool:
        return bool(self._slots or self._finished)

    @property
    def controls(self) -> Controls:
        return self._controls

    @property
    def slots(self) -> int:
        """Number of the engine's rows that this stream uses."""
        return len(self._slots)

    def push(self, frame: Frame) -> bool:
        """Admit `frame` ([height, width, 3] uint8) to a slot; False when depth or the engine's rows are exhausted."""
        assert not self._closed, "push on a closed stream"
        expected = (self._engine.height, self._engine.width, 3)
        if frame.image.shape != expected or frame.image.dtype != np.uint8:
            raise InputError(
                f"A frame of shape {frame.image.shape} and dtype {frame.image.dtype} was pushed.",
                f"This stream takes {expected} uint8 RGB.",
            )
        return self._admit(replace(frame, source_seq=frame.seq))

    def generate(self, frames: int = 1) -> bool:
        """Request `frames` pictures of a moving test pattern: either all of them or none (False)."""
        assert not self._closed, "generate on a closed stream"
        if frames > self._free:
            return False
        for _ in range(frames):
            picture = pattern_picture(self._engine.width, self._engine.height, self._taken)
            self._admit(Frame(image=picture, pts=self._generated, time_base=1 / self._frame_rate, seq=self._taken))
            self._generated += 1
        return True

    def apply(self, control: Control) -> int:
        """Store the change; returns the number of the next tick."""
        self._controls = self._controls.updated(control)
        return self._engine.ticks

    def pull(self) -> list[Frame]:
        """Return finished frames, oldest first."""
        frames = list(self._finished)
        self._finished.clear()
        return self._chain.push(frames)

    def flush(self) -> list[Frame]:
        """Tick until everything of this stream is finished and return it; frame stages are flushed too."""
        while self._slots:
            self._engine.tick()
        return [*self.pull(), *self._chain.flush()]

    def reset(self) -> None:
        """Drop what is in flight; counters restart at 0."""
        self._slots.clear()
        self._finished.clear()
        self._chain.reset()
        self._taken = self._generated = 0

    def close(self) -> None:
        """Release the stream's rows. May be called more than once."""
        self._closed = True
        self._slots.clear()
        self._engine.forget(self)

    def advance(self) -> None:
        """Advance every slot by one tick; called by the engine."""
        for slot in self._slots:
            slot.done_ticks += 1
        while self._slots and self._slots[0].done_ticks > self._engine.latency_ticks:
            frame = self._slots.popleft().frame
            self._finished.append(replace(frame, image=self._engine.draw(frame.image, self._controls)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _free(self) -> int:
        return min(self._engine.free_slots, self._controls.depth - len(self._slots))

    def _admit(self, frame: Frame) -> bool:
        if self._free < 1:
            return False
        self._slots.append(_Slot(frame=frame))
        self._taken += 1
        return True


def pattern_picture(width: int, height: int, number: int) -> npt.NDArray[np.uint8]:
    """Draw picture `number` of a moving test pattern, three drifting colour waves: [height, width, 3] uint8."""
    x, y = (np.linspace(0, 2 * np.pi, length) for length in (width, height))
    phase = number * 0.1
    row = (63.75 * (np.sin(x + phase) + 1)).astype(np.uint8)
    picture = np.empty((height, width, 3), np.uint8)
    for channel, speed in enumerate((1, 2, 3)):
        column = (63.75 * (np.cos(y - phase * speed) + 1)).astype(np.uint8)
        np.add(row[None, :], column[:, None], out=picture[:, :, channel])
    return picture
