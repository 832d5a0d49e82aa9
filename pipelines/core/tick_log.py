"""Owns the tick log: what happened to which slot in which tick, bounded in memory, with an optional sink.

Takes, replay, onset tests and the page's meters derive from it. Independent of files, which are up to the sink.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRecord:
    """One row of a tick's batch. step: index from 0. extra: the model also evaluated it with its negative prompt.

    task: what the pass was for: "denoise"; for video also "clean" (it stores the finished chunk's keys and values) and
    "context" (earlier frames are encoded again).
    """

    stream: int
    slot: int
    row: int
    step: int
    timestep: float
    extra: bool
    guidance_scale: float
    guidance_delta: float
    task: Literal["denoise", "clean", "context"] = "denoise"


@dataclass(frozen=True, slots=True, kw_only=True)
class TickRecord:
    """A tick: its rows in batch order, and the (stream, slot) of every slot that it finished."""

    tick: int
    rows: tuple[RowRecord, ...]
    finished: tuple[tuple[int, int], ...]
    kind: Literal["tick"] = "tick"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRecord:
    """Device time of a tick. On CUDA it is logged a tick or two later, since nothing waits for it."""

    tick: int
    encode_ms: float
    denoise_ms: float
    decode_ms: float
    kind: Literal["timing"] = "timing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRecord:
    """A frame offered to push, or one requested from generate (seq None). tick: the next one to run at that moment."""

    tick: int
    stream: int
    seq: int | None
    outcome: Literal["accepted", "skipped", "refused"]
    kind: Literal["push"] = "push"


@dataclass(frozen=True, slots=True, kw_only=True)
class BirthRecord:
    """A slot at its admission: what is fixed for it. source_seqs: None for prompt-only frames. tick: its first.

    work: "full", or how it reuses what the frames before it computed (cache/features/frames.py); with "hold" it takes
    part in no tick.
    """

    tick: int
    stream: int
    slot: int
    row: int
    source_seqs: tuple[int | None, ...]
    timesteps: tuple[float, ...]
    strength: float
    step_function: str
    guidance_mode: str
    seed: int
    seed_lock: bool
    work: str = "full"
    kind: Literal["birth"] = "birth"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRecord:
    """A change of controls and the tick from which it holds. Prompts are (text, weight) pairs."""

    tick: int
    stream: int
    changes: Mapping[str, object]
    kind: Literal["control"] = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord:
    """A stream was opened, reset, flushed (a partial slot may have been padded) or closed."""

    tick: int
    stream: int
    event: Literal["open", "reset", "flush", "close"]
    kind: Literal["stream"] = "stream"


Record = TickRecord | TimingRecord | PushRecord | BirthRecord | ControlRecord | StreamRecord


class TickLog:
    """Keeps the last `capacity` records and passes each one to `sink`, in order, as it is added."""

    def __init__(self, capacity: int = 4096, sink: Callable[[Record], None] | None = None) -> None:
        assert capacity >= 1, capacity
        self._records: deque[Record] = deque(maxlen=capacity)
        self._sink = sink
        self._last_timing: TimingRecord | None = None
        self._last_tick: TickRecord | None = None

    def add(self, record: Record) -> None:
        """Append a record; the oldest one is dropped when the log is full."""
        self._records.append(record)
        if isinstance(record, TimingRecord):
            self._last_timing = record
        elif isinstance(record, TickRecord):
            self._last_tick = record
        if self._sink is not None:
            self._sink(record)

    @property
    def last_timing(self) -> TimingRecord | None:
        """The newest timing; None before the first."""
        return self._last_timing

    @property
    def last_tick(self) -> TickRecord | None:
        """The newest tick; None before the first."""
        return self._last_tick

    def records(self) -> tuple[Record, ...]:
        """Return the kept records, oldest first."""
        return tuple(self._records)

    def ticks(self) -> tuple[TickRecord, ...]:
        """Return the kept tick records, oldest first."""
        return tuple(r for r in self._records if isinstance(r, TickRecord))

    def timings(self) -> tuple[TimingRecord, ...]:
        """Return the kept timing records, oldest first."""
        return tuple(r for r in self._records if isinstance(r, TimingRecord))
