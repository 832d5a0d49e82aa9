"""Owns how one stream's events become records of the tick log. Independent of batching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from .tick_log import BirthRecord, ControlRecord, PushRecord, StreamRecord, TickLog


class Ticking(Protocol):
    """What StreamLog needs of an engine: its log and the number of its next tick."""

    next_tick: int
    log: TickLog


class StreamLog:
    """Adds the records of stream `number` to the engine's log, stamped with the next tick."""

    def __init__(self, core: Ticking, number: int) -> None:
        self._core, self._number = core, number

    def event(self, event: Literal["open", "reset", "flush", "close"]) -> None:
        """Log an event of the stream itself."""
        self._core.log.add(StreamRecord(tick=self._core.next_tick, stream=self._number, event=event))

    def push(self, seq: int | None, outcome: Literal["accepted", "skipped", "refused"]) -> None:
        """Log an offered frame or, with seq None, one requested from `generate`."""
        self._core.log.add(PushRecord(tick=self._core.next_tick, stream=self._number, seq=seq, outcome=outcome))

    def change(self, changed: Mapping[str, object]) -> None:
        """Log changed controls; prompts become (text, weight) pairs."""
        plain = dict(changed)
        prompts = plain.get("prompt")
        if isinstance(prompts, tuple):
            plain["prompt"] = [(p.text, p.weight) for p in prompts]
        self._core.log.add(ControlRecord(tick=self._core.next_tick, stream=self._number, changes=plain))

    def birth(self, record: BirthRecord) -> None:
        """Log a new slot or chunk."""
        self._core.log.add(record)
