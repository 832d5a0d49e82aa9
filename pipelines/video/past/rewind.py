"""Owns the places that a stream can be rewound to: copies of its rows and counts as they stood when a chunk was born.

Bounded by bytes; the memory for all copies is taken at once, before the stream begins. Knows no prompt and no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cache.kv.cache import KVSnapshot
from pipelines.core.errors import ControlError
from pipelines.video.codecs.memory import CodecSnapshot

_MAX = 64
_Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewindBuffers:
    """Memory for one place. cache: for each row. encoder: None before a stream of the engine has had an input."""

    cache: tuple[_Tensors, ...]
    decoder: _Tensors
    encoder: _Tensors | None
    past: _Tensors

    @property
    def bytes(self) -> int:
        """Of all of it."""
        parts = (*self.cache, self.decoder, self.encoder or (), self.past)
        return sum(tensor.nbytes for part in parts for tensor in part)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewindPoint:
    """What stood when chunk `number` was born, copied into `buffers`. rest: what the stream itself has to put back."""

    number: int
    buffers: RewindBuffers
    cache: tuple[KVSnapshot, ...]
    decoder: CodecSnapshot
    encoder: CodecSnapshot | None
    past: Any
    stream_state: Any


class RewindHistory:
    """The latest checkpoints, at most 64, whose copies fit into `budget_bytes` together, oldest first.

    make: gives room for one checkpoint, without an encoder's, on a device (None: where it is copied from).
    """

    def __init__(self, budget_bytes: int, make: Callable[[str | None], RewindBuffers]) -> None:
        self._budget_bytes = budget_bytes
        self._needed_bytes = make("meta").bytes  # by one checkpoint
        self._kept: deque[RewindPoint] = deque()
        self._free = [make(None) for _ in range(min(_MAX, budget_bytes // self._needed_bytes))]

    def add_encoder(self, make: Callable[[str | None], _Tensors]) -> None:
        """The engine has an encoder from now on: every place gets room for it, as many as then still fit."""
        self._needed_bytes += sum(tensor.nbytes for tensor in make("meta"))
        while len(self._free) + len(self._kept) > self._budget_bytes // self._needed_bytes:
            self.free_buffers()
        self._free = [replace(buffers, encoder=make(None)) for buffers in self._free]
        self._kept = deque(replace(kept, buffers=replace(kept.buffers, encoder=make(None))) for kept in self._kept)

    def free_buffers(self) -> RewindBuffers | None:
        """Where the next checkpoint is to be copied to; the oldest is forgotten for it. None: not even one fits."""
        if self._free:
            return self._free.pop()
        return self._kept.popleft().buffers if self._kept else None

    def add(self, point: RewindPoint) -> None:
        """Keep a checkpoint, copied into a `free_buffers`."""
        self._kept.append(point)

    @property
    def bytes(self) -> int:
        """Memory of all copies, made or not."""
        return sum(buffers.bytes for buffers in (*self._free, *(point.buffers for point in self._kept)))

    @property
    def numbers(self) -> list[int]:
        """Chunks that can be gone back to."""
        return [point.number for point in self._kept]

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

    def back_to(self, number: int) -> RewindPoint:
        """The checkpoint of chunk `number`; it and all later ones are forgotten. Good until the next `free_buffers`."""
        while self._kept:
            point = self._kept.pop()
            self._free.append(point.buffers)
            if point.number == number:
                return point
        raise AssertionError(f"chunk {number} was checked")

    def find(self, number: int) -> RewindPoint:
        """The same, and nothing is forgotten."""
        return next(point for point in self._kept if point.number == number)

    def clear(self) -> None:
        """Forget all."""
        self._free += [point.buffers for point in self._kept]
        self._kept.clear()
