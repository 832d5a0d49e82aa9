"""Owns the places that a stream can be rewound to: copies of its rows and counts as they stood when a chunk was born.

Bounded by bytes. Knows no prompt and no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cache.kv import KVSnapshot

from ..errors import ControlError
from .codec_memory import CodecSnapshot

_MOST = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """What stood when chunk `number` was born. rest: what the stream itself has to put back."""

    number: int
    cache: tuple[KVSnapshot, ...]
    decoder: CodecSnapshot
    encoder: CodecSnapshot | None
    memory: Any
    rest: Any

    @property
    def bytes(self) -> int:
        """Memory of the copies of caches and codec."""
        codecs = self.decoder.bytes + (self.encoder.bytes if self.encoder is not None else 0)
        return codecs + sum(snapshot.bytes for snapshot in self.cache)


class History:
    """The latest checkpoints, at most 64, that fit into `budget_bytes` together, oldest first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._kept: deque[Checkpoint] = deque()
        self._needed_bytes = 0  # by one checkpoint, once one was made

    def offer(self, estimate_bytes: int, make: Callable[[], Checkpoint]) -> None:
        """Keep another checkpoint if one of so many bytes can be kept at all."""
        self._needed_bytes = estimate_bytes
        if estimate_bytes > self._budget_bytes:
            return
        while self._kept and (len(self._kept) == _MOST or self.bytes + estimate_bytes > self._budget_bytes):
            self._kept.popleft()
        self._kept.append(make())

    @property
    def bytes(self) -> int:
        """Memory of all copies."""
        return sum(checkpoint.bytes for checkpoint in self._kept)

    @property
    def numbers(self) -> list[int]:
        """Chunks that can be gone back to."""
        return [checkpoint.number for checkpoint in self._kept]

    def check(self, number: int) -> None:
        """Raise ControlError when chunk `number` is not kept."""
        if number in self.numbers:
            return
        if self._needed_bytes > self._budget_bytes:
            raise ControlError(
                f"rewind_to cannot be {number}: a place to rewind to takes {self._needed_bytes / 2**20:.0f} MiB here, "
                f"and {self._budget_bytes / 2**20:.0f} MiB may be used.",
                "Load the engine with a larger rewind_bytes, or a smaller window.",
            )
        kept = f"{self.numbers[0]} to {self.numbers[-1]}" if self._kept else "none yet"
        raise ControlError(f"rewind_to cannot be {number}.", f"Chunks that can be gone back to: {kept}.")

    def back_to(self, number: int) -> Checkpoint:
        """The checkpoint of chunk `number`; it and all later ones are forgotten."""
        while self._kept:
            checkpoint = self._kept.pop()
            if checkpoint.number == number:
                return checkpoint
        raise AssertionError(f"chunk {number} was checked")

    def find(self, number: int) -> Checkpoint:
        """The same, and nothing is forgotten."""
        return next(checkpoint for checkpoint in self._kept if checkpoint.number == number)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
