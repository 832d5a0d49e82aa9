"""Owns what one forward pass sees of the cache: a chunk's rotation, and the exchange of its keys and values.

A view serves one pass and is then discarded; its tensors are the cache's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cache.kv.bank import Bank, Rotated, runs
from cache.kv.ops import accumulate, run, shape_of
from cache.kv.plan import Operation, Span
from cache.kv.recall import Recall, Refresh


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPass:
    """What a pass does in one row. first_pass: operations to run in each layer; moved: past spans that they change.

    first: whether it is the first pass of the row's chunk.
    """

    row: int
    first: bool
    attended: tuple[Span, ...]
    first_pass: tuple[Operation, ...]
    moved: tuple[Span, ...]


class KVView:
    """One forward pass over some rows: B rows, N new tokens, M attended tokens (N included).

    In every layer: if `observes`, `observe(layer, rotated queries)` first; then `exchange(layer, keys, values)`.
    """

    def __init__(
        self,
        bank: Bank,
        rotated: Rotated,
        passes: Sequence[RowPass],
        *,
        slots: tuple[int, int],
        tokens: int,
        index: tuple[torch.Tensor, torch.Tensor],
        rotation: tuple[torch.Tensor, torch.Tensor],
        refresh: Refresh | None = None,
    ) -> None:
        self._bank, self._rotated, self._passes = bank, rotated, tuple(passes)
        self._slots, self._tokens, self._index, self._rotation = slice(*slots), tokens, index, rotation
        self._queries: dict[int, torch.Tensor] = {}
        self._accumulates = bank.policy.accumulates and any(p.first for p in passes)
        self.rows = tuple(p.row for p in passes)
        self.recall = None if bank.hidden is None else Recall(bank, index[0], self.exchange, refresh)
        """For a cache that stores hidden states; see `Recall`."""
        measures = self.recall is not None and self.recall.measures
        self.observes = self._accumulates or measures or any(p.first_pass for p in passes)
        """Whether this pass must call `observe` in every layer."""
        rows = self.rows
        self._adjacent = slice(rows[0], rows[-1] + 1) if rows == tuple(range(rows[0], rows[-1] + 1)) else None

    @property
    def tokens(self) -> int:
        """N."""
        return self._tokens

    @property
    def attended_tokens(self) -> int:
        """M."""
        return self._slots.stop - self._slots.start

    @property
    def query_rotation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of the pass's own queries and keys: [B, N, 1, D/2] float32, at a fixed address."""
        return self._rotation

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for passes that run the same kernels on the same addresses: the key of a captured CUDA graph.

        A graph captured from one pass may be replayed for a later one of equal signature: the later one's `begin` has
        written its slots and rotations into the tensors that the graph reads. The view must still be created: that
        marks the chunk's first pass as done. Rows that are not adjacent cannot be captured.
        """
        pending = tuple(shape_of(op) for p in self._passes for op in p.first_pass)
        firsts = tuple(p.first for p in self._passes) if self._accumulates else ()
        return (self.rows, self._slots.start, self._slots.stop, self._tokens, firsts, pending)

    @property
    def plain(self) -> bool:
        """Whether the pass only reads the past and writes its own keys and values: `copy_past` and `store` may then
        replace `exchange`. Otherwise it runs operations on the past, sums up attention or stores hidden states, layer
        by layer.
        """
        return not self.observes and self.recall is None and not any(p.moved for p in self._passes)

    @property
    def past_tokens(self) -> int:
        """Number of attended tokens that are not the pass's own."""
        return self.attended_tokens - self._tokens

    def copy_past(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy what the batch's row `number` attends to besides its own tokens: rotated keys, and values.

        keys, values: [layers, past_tokens, H, D], written in the order of slots. Needs a `plain` view.
        """
        assert self.plain, "operations of this pass need `exchange`"
        row_pass = self._passes[number]
        row = slice(row_pass.row, row_pass.row + 1)
        past = row_pass.attended[: -(self._tokens // row_pass.attended[-1].length)]  # the chunk's own spans come last
        for layer in range(keys.shape[0]):
            self._rotated.load(layer, row_pass.row, row_pass.attended)
            done = 0
            for start, stop, _ in runs(past):
                found = self._rotated.read(layer, row, slice(start, stop))
                for target, source in zip((keys, values), found, strict=True):
                    target[layer, done : done + stop - start].copy_(source[0])
                done += stop - start
            assert done == keys.shape[1], (done, keys.shape)

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the unrotated keys and values [layers, B, N, H, D], as `exchange` does. Needs a `plain` view."""
        assert self.plain, "operations of this pass need `exchange`"
        self._rotated.write_layers(self._index, keys, values, self._rotation)

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        """Take a layer's rotated queries [B, N, H, D], before its `exchange`. Required if `observes`, else ignored."""
        if self.observes:
            self._queries[layer] = queries

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the pass's unrotated keys and values [B, N, H, D]; return all rotated keys and values [B, M, H, D].

        A later pass of the same chunk overwrites them. The result is the cache's own memory: read it before the next
        `exchange` (some storages share it between layers) and do not write to it.
        """
        assert keys.shape[:2] == (len(self.rows), self._tokens), (keys.shape, self.rows, self._tokens)
        queries = None
        if self.observes:
            assert layer in self._queries, "observe(layer, queries) comes before exchange in a pass that observes"
            queries = self._queries.pop(layer)
            if self.recall is not None:
                self.recall.measure(layer, queries[0], keys[0], tuple(part[0] for part in self._rotation))
        for i, row_pass in enumerate(self._passes):
            for op in row_pass.first_pass:
                run(self._bank, layer, row_pass.row, op, None if queries is None else queries[i])
            if row_pass.moved:
                self._rotated.rotate(layer, row_pass.row, row_pass.moved)
            self._rotated.load(layer, row_pass.row, row_pass.attended)
        self._rotated.write(layer, self._index, keys, values, self._rotation)
        attended = self._read(layer)
        if self._accumulates:
            assert queries is not None
            for i, row_pass in enumerate(self._passes):
                if row_pass.first:
                    accumulate(self._bank, layer, row_pass.row, self._slots, queries[i], attended[0][i])
        return attended

    def _read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._adjacent is not None:
            return self._rotated.read(layer, self._adjacent, self._slots)
        parts = [self._rotated.read(layer, slice(row, row + 1), self._slots) for row in self.rows]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
