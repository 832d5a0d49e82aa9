"""Owns the rewind points of a stream: copies of its cache rows and its state, made when a chunk begins.

Bounded in bytes; the memory of all copies is allocated at once, when the stream opens. Independent of prompts and
frames.
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

_MAX_POINTS = 64
_Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewindBuffers:
    """Memory of one rewind point. cache: for each row. encoder: None before any stream of the engine had input
    frames."""

    cache: tuple[_Tensors, ...]
    decoder: _Tensors
    encoder: _Tensors | None
    past: _Tensors

    @property
    def bytes(self) -> int:
        """Size of all buffers."""
        parts = (*self.cache, self.decoder, self.encoder or (), self.past)
        return sum(tensor.nbytes for part in parts for tensor in part)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewindPoint:
    """The state when chunk `number` began, copied into `buffers`. past: see `StreamPast.host_state`. stream_state: what
    the stream restores itself."""

    number: int
    buffers: RewindBuffers
    cache: tuple[KVSnapshot, ...]
    decoder: CodecSnapshot
    encoder: CodecSnapshot | None
    past: Any
    stream_state: Any


class RewindHistory:
    """The latest rewind points, oldest first: as many as fit into `budget_bytes`, at most 64.

    make: allocates buffers for one point, without the encoder's, on a device (None: where its sources are).
    """

    def __init__(self, budget_bytes: int, make: Callable[[str | None], RewindBuffers]) -> None:
        self._budget_bytes = budget_bytes
        self._needed_bytes = make("meta").bytes  # by one point
        self._kept: deque[RewindPoint] = deque()
        self._free = [make(None) for _ in range(min(_MAX_POINTS, budget_bytes // self._needed_bytes))]

    def add_encoder(self, make: Callable[[str | None], _Tensors]) -> None:
        """Add the encoder's buffers, once the engine has one, to as many points as then still fit."""
        self._needed_bytes += sum(tensor.nbytes for tensor in make("meta"))
        while len(self._free) + len(self._kept) > self._budget_bytes // self._needed_bytes:
            self.free_buffers()
        self._free = [replace(buffers, encoder=make(None)) for buffers in self._free]
        self._kept = deque(replace(kept, buffers=replace(kept.buffers, encoder=make(None))) for kept in self._kept)

    def free_buffers(self) -> RewindBuffers | None:
        """Return buffers for the next point, dropping the oldest point if necessary; None if not even one fits."""
        if self._free:
            return self._free.pop()
        return self._kept.popleft().buffers if self._kept else None

    def add(self, point: RewindPoint) -> None:
        """Keep a point whose buffers came from `free_buffers`."""
        self._kept.append(point)

    @property
    def bytes(self) -> int:
        """Size of all buffers, used or free."""
        return sum(buffers.bytes for buffers in (*self._free, *(point.buffers for point in self._kept)))

    @property
    def numbers(self) -> list[int]:
        """Numbers of the chunks that can be rewound to."""
        return [point.number for point in self._kept]

    def check(self, number: int) -> None:
        """Raise ControlError if chunk `number` cannot be rewound to."""
        if number in self.numbers:
            return
        if self._needed_bytes > self._budget_bytes:
            raise ControlError(
                f"rewind_to cannot be {number}: a rewind point takes {self._needed_bytes / 2**20:.0f} MiB here, and "
                f"rewind_bytes allows {self._budget_bytes / 2**20:.0f} MiB.",
                "Load the engine with a larger rewind_bytes, or a smaller window.",
            )
        kept = f"{self.numbers[0]} to {self.numbers[-1]}" if self._kept else "none yet"
        raise ControlError(f"rewind_to cannot be {number}.", f"Chunks that can be rewound to: {kept}.")

    def back_to(self, number: int) -> RewindPoint:
        """Return the point of chunk `number`, dropping it and all later ones. Valid until the next `free_buffers`."""
        while self._kept:
            point = self._kept.pop()
            self._free.append(point.buffers)
            if point.number == number:
                return point
        raise AssertionError(f"chunk {number} was checked")

    def find(self, number: int) -> RewindPoint:
        """Return the point of chunk `number`, which must be kept, and drop nothing."""
        return next(point for point in self._kept if point.number == number)

    def clear(self) -> None:
        """Drop all points."""
        self._free += [point.buffers for point in self._kept]
        self._kept.clear()
