"""Owns all memory of a cache: stored keys and values, rotated copies, and what selection needs.

Holds tensors; decides nothing. Rotated keys are kept in one of three ways: `Resident` keeps a rotated copy of every
layer, renewed once per chunk; `PerPass` rotates a layer's keys in every pass into memory shared by all layers; `Once`
stores keys rotated, for policies that keep the distances between frames, and has no others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from cache.kv.kernels import KVKernels
from cache.kv.plan import SelectBlocks, SelectTokens, Span, SpanKind
from cache.kv.policies.base import KVPolicy
from cache.kv.store import E4M3, Int8Store, KVShape, NativeStore, RotatedStore, Store, converted, movable, widened
from cache.kv.tables import PhaseTables, upload
from cache.rotary import Rotary, rotate_pairs

TensorPair = tuple[torch.Tensor, torch.Tensor]


class Bank:
    """The memory of a cache. rotate: the kernel that rotates keys."""

    def __init__(self, shape: KVShape, policy: KVPolicy, rotary: Rotary, store: Store, kernels: KVKernels) -> None:
        self.shape, self.policy, self.store = shape, policy, store
        self.kernels, self.rotate = kernels, kernels.rotate
        self.capacity = policy.capacity_tokens
        self.frame_cells = policy.frame_cells
        wide = torch.float64 if shape.dtype == torch.float64 else torch.float32
        self.tables = PhaseTables(
            rotary, policy.regions, shape.cache_rows, phase_step=policy.phase_step, dtype=wide, device=shape.device
        )
        size = (shape.layers, shape.cache_rows, self.capacity)
        heads = shape.heads if policy.selects < 0 else policy.selects
        frame = torch.arange(self.capacity, dtype=torch.int32, device=shape.device) - self.frame_cells.start
        frame = torch.remainder(frame, self.frame_cells.tokens).to(torch.int32)
        self.origins = frame[:, None].expand(*size, heads).contiguous() if heads else None
        """[layers, rows, capacity, 1 or heads] int32: the index within its frame of each slot's token."""
        self.attention = (
            torch.zeros((*size, shape.heads), dtype=torch.float32, device=shape.device) if policy.accumulates else None
        )
        """[layers, rows, capacity, heads]: the attention that each token has received."""
        deep = (len(shape.boundaries), shape.cache_rows, self.capacity, shape.heads * shape.head_dim)
        self.hidden = torch.zeros(deep, dtype=shape.dtype, device=shape.device) if shape.boundaries else None
        """[boundaries, rows, capacity, heads * head_dim]: the inputs of the layers that are boundaries."""
        cells = sum(region.cells for region in policy.regions) if heads or policy.scores_queries else 0
        self.starts = torch.zeros((shape.cache_rows, cells), dtype=torch.int64, device=shape.device)
        """First slots of the candidates of a selection."""
        self.candidate_times = torch.zeros(
            (shape.cache_rows, 2, cells, self.tables.time_pairs), dtype=wide, device=shape.device
        )
        """Temporal (cos, sin) of the candidates' positions during scoring."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory except the rotated keys."""
        optional = tuple(t for t in (self.origins, self.attention, self.hidden) if t is not None)
        return (*self.store.tensors, *self.tables.tensors, *optional, self.starts, self.candidate_times)

    @property
    def by_slot(self) -> tuple[torch.Tensor, ...]:
        """Per-token storage, which moves with the tokens: each [layers or boundaries, rows, capacity, ...]."""
        return (*self.store.tensors, *(t for t in (self.origins, self.attention, self.hidden) if t is not None))

    def cells(self, layer: int, row: int) -> list[torch.Tensor]:
        """The parts of `by_slot` that belong to a layer of a row: each [capacity, ...]."""
        found = [t[layer, row] for t in (*self.store.tensors, self.origins, self.attention) if t is not None]
        if self.hidden is not None and layer in self.shape.boundaries:
            found.append(self.hidden[self.shape.boundaries.index(layer), row])
        return found

    def prepare(self, row: int, op: SelectTokens | SelectBlocks) -> None:
        """Upload a selection's candidates and their positions during scoring."""
        count = len(op.candidates)
        upload(torch.tensor([span.start for span in op.candidates]), self.starts[row, :count])
        step = self.policy.phase_step
        times = self.tables.times([s.position for s in op.candidates], [s.phase * step for s in op.candidates])
        for part, host in zip(self.candidate_times[row], times, strict=True):
            upload(host, part[:count])

    def reset_slots(self, row: int, chunk: Sequence[Span]) -> None:
        """Mark the chunk's slots as whole frames that have received no attention yet."""
        for span in chunk:
            if self.origins is not None:
                spatial = torch.arange(span.length, dtype=torch.int32, device=self.shape.device)
                self.origins[:, row, span.start : span.stop] = spatial[:, None]
            if self.attention is not None:
                self.attention[:, row, span.start : span.stop] = 0

    def rotation(
        self, layer: int, row: int, start: int, stop: int, kind: SpanKind
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin), each [slots, 1 or heads, D/2], of slots that are either all selected tokens or none."""
        cos, sin = self.tables.cos[row, start:stop], self.tables.sin[row, start:stop]
        if kind is not SpanKind.SELECTED:
            return cos, sin
        assert self.origins is not None
        return self.with_origins(cos, sin, self.origins[layer, row, start:stop])

    def with_origins(
        self, cos: torch.Tensor, sin: torch.Tensor, origins: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The temporal part of cos, sin [n, 1, time pairs or more] with the spatial part of origins [n, heads]."""
        pairs, heads = self.tables.time_pairs, origins.shape[1]
        return tuple(  # type: ignore[return-value]
            torch.cat((time[..., :pairs].expand(-1, heads, -1), write[origins.long()]), dim=-1)
            for time, write in zip((cos, sin), self.tables.spatial(self.frame_cells), strict=True)
        )


def runs(spans: Sequence[Span]) -> list[tuple[int, int, SpanKind]]:
    """The spans' slots as the fewest half-open ranges; selected tokens separate from all others."""
    merged: list[tuple[int, int, SpanKind]] = []
    for span in sorted(spans, key=lambda s: s.start):
        kind = SpanKind.SELECTED if span.kind is SpanKind.SELECTED else SpanKind.RECENT
        if merged and merged[-1][1] == span.start and merged[-1][2] is kind:
            merged[-1] = (merged[-1][0], span.stop, kind)
        else:
            merged.append((span.start, span.stop, kind))
    return merged


class Rotated(Protocol):
    """Storage of rotated keys: what attention reads."""

    keeps: bool
    """Whether rotated keys are all there is: they keep their positions, and move with their tokens."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory that is not the store's."""
        ...

    def rotate(self, layer: int, row: int, spans: Sequence[Span]) -> None:
        """These spans' keys were moved or have new positions: rotate them again."""
        ...

    def turn(self, layer: int, row: int, span: Span, distance: int) -> None:
        """Rotate a span's keys, which are rotated already, by a further distance in time. Only if `keeps`."""
        ...

    def load(self, layer: int, row: int, attended: Sequence[Span]) -> None:
        """A layer of a pass begins: make all attended spans readable, except the chunk itself."""
        ...

    def write(
        self, layer: int, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair
    ) -> None:
        """Store the chunk's keys and values [B, N, H, D] and make them readable, keys rotated by (cos, sin).

        index: flat slots [B, N] of the store (row * capacity + slot) and here (row * attended_tokens + slot).
        """
        ...

    def write_layers(self, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair) -> None:
        """`write` of all layers; keys, values: [layers, B, N, H, D]."""
        ...

    def read(self, layer: int, rows: slice, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values [rows, slots, H, D]: views of memory at fixed addresses."""
        ...


class Resident:
    """A rotated copy of all keys of all layers, renewed once per chunk where positions changed. Values as stored."""

    keeps = False

    def __init__(self, bank: Bank) -> None:
        shape = bank.shape
        size = (shape.layers, shape.cache_rows, bank.policy.attended_tokens, shape.heads, shape.head_dim)
        assert isinstance(bank.store, NativeStore), bank.store
        self._bank = bank
        self._keys = torch.zeros(size, dtype=shape.dtype, device=shape.device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self._keys,)

    def rotate(self, layer: int, row: int, spans: Sequence[Span]) -> None:
        bank = self._bank
        for start, stop, kind in runs(spans):
            keys = bank.store.keys(layer, slice(row, row + 1), slice(start, stop))[0]
            rotation = bank.rotation(layer, row, start, stop, kind)
            bank.kernels.rotate_into(self._keys[layer, row, start:stop], keys, *rotation)

    def turn(self, layer: int, row: int, span: Span, distance: int) -> None:
        raise AssertionError("keys are rotated from unrotated ones")

    def load(self, layer: int, row: int, attended: Sequence[Span]) -> None:
        """Nothing to do."""

    def write(
        self, layer: int, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair
    ) -> None:
        targets = (tensor[layer].flatten(0, 1) for tensor in (*self._bank.store.tensors, self._keys))
        self._bank.kernels.write(keys, values, *rotation, *index, *targets)

    def write_layers(self, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair) -> None:
        rotated = self._bank.rotate(keys, *rotation)
        for tensor, source, slots in zip(
            (*self._bank.store.tensors, self._keys), (keys, values, rotated), (index[0], *index), strict=True
        ):
            tensor.flatten(1, 2).index_copy_(1, slots.reshape(-1), source.flatten(1, 2).to(tensor.dtype))

    def read(self, layer: int, rows: slice, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys[layer, rows, slots], self._bank.store.values(layer, rows, slots)


class PerPass:
    """One layer's rotated keys and plain values, recomputed in every layer of every pass."""

    keeps = False

    def __init__(self, bank: Bank) -> None:
        shape = bank.shape
        size = (shape.cache_rows, bank.policy.attended_tokens, shape.heads, shape.head_dim)
        self._bank = bank
        self._keys = torch.zeros(size, dtype=shape.dtype, device=shape.device)
        self._values = torch.zeros(size, dtype=shape.dtype, device=shape.device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self._keys, self._values

    def rotate(self, layer: int, row: int, spans: Sequence[Span]) -> None:
        """Nothing to do: `load` rotates."""

    def turn(self, layer: int, row: int, span: Span, distance: int) -> None:
        raise AssertionError("keys are rotated from unrotated ones")

    def load(self, layer: int, row: int, attended: Sequence[Span]) -> None:
        """The chunk's own slots are read too, so that the ranges stay the same as the chunk moves through the ring."""
        bank = self._bank
        for start, stop, kind in runs(attended):
            one, slots = slice(row, row + 1), slice(start, stop)
            rotation = bank.rotation(layer, row, start, stop, kind)
            bank.kernels.rotate_into(self._keys[row, start:stop], bank.store.keys(layer, one, slots)[0], *rotation)
            self._values[row, start:stop] = bank.store.values(layer, one, slots)[0]

    def write(
        self, layer: int, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair
    ) -> None:
        store_index, local_index = (slots.reshape(-1) for slots in index)
        flat_keys, flat_values = keys.flatten(0, 1), values.flatten(0, 1)
        self._bank.store.write(layer, store_index, flat_keys, flat_values)
        rotated = self._bank.rotate(keys, *rotation).flatten(0, 1)
        self._keys.flatten(0, 1).index_copy_(0, local_index, rotated.to(self._keys.dtype))
        self._values.flatten(0, 1).index_copy_(0, local_index, flat_values.to(self._values.dtype))

    def write_layers(self, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair) -> None:
        for layer in range(len(keys)):
            self.write(layer, index, keys[layer], values[layer], rotation)

    def read(self, layer: int, rows: slice, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys[rows, slots], self._values[rows, slots]


class Once:
    """Rotated keys and values of a `RotatedStore`; with unrotated keys too they are renewed as by `Resident`."""

    def __init__(self, bank: Bank) -> None:
        assert isinstance(bank.store, RotatedStore), bank.store
        self._bank, self._store = bank, bank.store
        self.keeps = bank.store.unrotated is None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return () if self.keeps else (self._store.rotated,)

    def rotate(self, layer: int, row: int, spans: Sequence[Span]) -> None:
        bank = self._bank
        for start, stop, kind in runs(spans):
            keys = self._store.keys(layer, slice(row, row + 1), slice(start, stop))[0]
            rotation = bank.rotation(layer, row, start, stop, kind)
            bank.kernels.rotate_into(self._store.rotated[layer, row, start:stop], keys, *rotation)

    def turn(self, layer: int, row: int, span: Span, distance: int) -> None:
        keys, tables = self._store.rotated[layer, row, span.start : span.stop], self._bank.tables
        cos, sin = (part.to(keys.device) for part in tables.times([distance], [0.0]))
        rest = keys.shape[-1] // 2 - tables.time_pairs
        cos, sin = F.pad(cos, (0, rest), value=1.0), F.pad(sin, (0, rest))
        wide = widened(keys.to(self._bank.shape.dtype))
        keys.copy_(converted(rotate_pairs(wide, cos, sin), keys.dtype))

    def load(self, layer: int, row: int, attended: Sequence[Span]) -> None:
        """Nothing to do."""

    def write(
        self, layer: int, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair
    ) -> None:
        store, slots = self._store, index[0]
        rotated, stored = (movable(x)[layer].flatten(0, 1) for x in (store.rotated, store.values_memory))
        if store.unrotated is not None:
            unrotated = store.unrotated[layer].flatten(0, 1)
            unrotated.index_copy_(0, slots.reshape(-1), keys.flatten(0, 1).to(unrotated.dtype))
        self._bank.kernels.write_rotated(keys, values, *rotation, slots, rotated, stored)

    def write_layers(self, index: TensorPair, keys: torch.Tensor, values: torch.Tensor, rotation: TensorPair) -> None:
        for layer in range(len(keys)):
            self.write(layer, index, keys[layer], values[layer], rotation)

    def read(self, layer: int, rows: slice, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._store.rotated[layer, rows, slots], self._store.values_memory[layer, rows, slots]


STORAGES: Mapping[str, tuple[Callable[[KVShape, KVPolicy], Store], Callable[[Bank], Rotated]]] = {
    "native": (NativeStore, Resident),
    "lean": (NativeStore, PerPass),
    "int8": (Int8Store, PerPass),
    "rotated": (RotatedStore, Once),
    "fp8": (functools.partial(RotatedStore, dtype=E4M3), Once),
}
"""native: 3 units of memory (keys, values, rotated keys); lean: 2; int8: about 1. A unit is all layers' keys.

rotated: 2 (rotated keys, values) for a policy that keeps distances, 3 for others. fp8: rotated keys and values in e4m3,
for fp8 attention: 1, or 2. Its keys and values are given in the scale in which they are stored.
"""


def units(storage: str, policy: KVPolicy) -> int:
    """Memory of a storage under a policy, in units of all layers' keys in the cache's dtype, rounded up."""
    if storage in ("rotated", "fp8"):
        stored = 2 if storage == "rotated" else 1
        return stored + (not policy.keeps_distances)
    return {"native": 3, "lean": 2, "int8": 1}[storage]
