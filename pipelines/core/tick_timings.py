"""Owns the timings of ticks that the device may still be running: logged in order once finished. Never waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .tick_log import TickLog, TimingRecord
from .transfers import Mark


class TickTimings:
    """Turns the marks of ticks into timing records."""

    def __init__(self, log: TickLog) -> None:
        self._log = log
        self._waiting: deque[tuple[int, Sequence[Mark]]] = deque()

    def add(self, tick: int, marks: Sequence[Mark]) -> None:
        """Add a tick, logged once finished. marks: its start, and the ends of its encoding, denoising and decoding;
        before the end of its denoising, its start, where the tick waits for others in between."""
        self._waiting.append((tick, marks))
        self.log_finished()

    def log_finished(self) -> None:
        """Log the timings of the ticks that the device has finished."""
        while self._waiting and self._waiting[0][1][-1].passed():
            tick, (start, encoded, *waited, stepped, decoded) = self._waiting.popleft()
            self._log.add(
                TimingRecord(
                    tick=tick,
                    encode_ms=encoded.ms_since(start),
                    denoise_ms=stepped.ms_since(waited[0] if waited else encoded),
                    decode_ms=decoded.ms_since(stepped),
                )
            )
