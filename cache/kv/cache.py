"""Owns the key/value cache of a causal transformer: rows of history, a chunk's beginning, views, rewind, integrity.

Knows tensors and integers; never frames of video or prompts. Keys are stored without rotary phase. Policies decide with
host integers; in steady state all shapes and addresses are constant and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cache.kv.bank import STORAGES, Bank
from cache.kv.integrity import check_row
from cache.kv.kernels import PLAIN_KERNELS, KVKernels
from cache.kv.ops import run, touched
from cache.kv.plan import KVError, Ledger, Plan, SelectBlocks, SelectTokens, Span, SpanKind, attended_range, gaps
from cache.kv.policies import KVPolicy
from cache.kv.store import KVShape
from cache.kv.tables import upload
from cache.kv.view import KVView, RowPass
from cache.rotary import Rotary

__all__ = ["KVCache", "KVShape", "KVSnapshot"]


@dataclass(slots=True)
class _Row:
    """The host's side of a row."""

    ledger: Ledger = field(default_factory=Ledger)
    due: Plan | None = None
    """The plan whose first-pass operations have not been taken by a view."""
    rotated: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """First slot -> (stop, position, phase) of the spans whose rotated keys are at hand."""
    written: dict[int, int] = field(default_factory=dict)
    """First slot -> how many times its contents have been replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSnapshot:
    """What `restore` needs. parts: copies of all slots' contents; None: the host's integers are all there is."""

    ledger: Ledger
    written: dict[int, int]
    parts: tuple[torch.Tensor, ...] | None

    @property
    def bytes(self) -> int:
        """Memory of the copies."""
        return sum(t.nbytes for t in self.parts or ())


class KVCache:
    """Keys and values of `shape.cache_rows` histories under one policy.

    storage: "native" keeps a rotated copy of all keys as well (3 units of memory, least work), "lean" rotates in every
    pass (2 units), "int8" stores 8-bit integers with a scale per token and head and rotates in every pass (about 1 unit
    of 16-bit keys). kernels: compiled ones, where they are at hand. Raises KVError for an unknown storage or a
    policy made for another grid.
    """

    def __init__(
        self,
        shape: KVShape,
        policy: KVPolicy,
        *,
        rotary: Rotary,
        storage: str = "native",
        kernels: KVKernels = PLAIN_KERNELS,
    ) -> None:
        if storage not in STORAGES:
            raise KVError(f"unknown storage {storage!r} of keys and values; there are {', '.join(STORAGES)}")
        if policy.grid != shape.grid:
            raise KVError(
                f"the policy was made for the grid {policy.grid} and the cache for {shape.grid}: make both alike"
            )
        if rotary.head_dim != shape.head_dim:
            raise KVError(f"the rotary phases have head_dim {rotary.head_dim} and the cache {shape.head_dim}")
        make_store, make_rotated = STORAGES[storage]
        self.shape, self.policy, self.storage = shape, policy, storage
        self._bank = Bank(shape, policy, rotary, make_store(shape, policy.capacity_tokens), kernels)
        self._rotated = make_rotated(self._bank)
        self._rows = [_Row() for _ in range(shape.cache_rows)]
        self._chunk_tokens = policy.begin_frames * shape.frame_tokens
        size = (shape.cache_rows, self._chunk_tokens)
        self._index, self._rotated_index = (torch.zeros(size, dtype=torch.int64, device=shape.device) for _ in range(2))
        tables = self._bank.tables
        self._cos, self._sin = (
            torch.zeros((*size, *table.shape[2:]), dtype=table.dtype, device=shape.device)
            for table in (tables.cos, tables.sin)
        )

    @property
    def bytes(self) -> int:
        """All memory that this cache holds, on the device."""
        own = (self._index, self._rotated_index, self._cos, self._sin)
        return sum(t.nbytes for t in (*self._bank.tensors, *self._rotated.tensors, *own))

    def begin(self, row: int, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None) -> Ledger:
        """Make room for a chunk of `frames` latent frames, and rotate what is kept to where it now stands.

        keep: how many of its first frames stay when the next chunk begins (Rolling Forcing: 3 of 15, and none while its
        window fills); default all.
        shots: the frames' shot indices, for policies with phases. Returns what stands in the row now. Raises KVError
        when the policy cannot hold such a chunk, or the last one was never passed; the row is then as before.
        """
        state = self._passed(row)
        plan = self.policy.plan(state.ledger, frames, keep=keep, shots=shots)
        after = plan.ledger
        changed = {slot for op in plan.now for slot in touched(op)}
        for op in (*plan.now, *plan.first_pass):
            if isinstance(op, SelectTokens | SelectBlocks):
                self._bank.prepare(row, op)
        for op in plan.now:
            for layer in range(self.shape.layers):
                run(self._bank, layer, row, op)
        self._bank.tables.update(row, (*after.spans, *after.pool))
        self._bank.fresh(row, after.chunk)
        self._rotate_stale(row, plan, changed)
        self._place_chunk(row, after.chunk)
        for slot in changed | {s.start for s in after.chunk} | {s for op in plan.first_pass for s in touched(op)}:
            state.written[slot] = state.written.get(slot, 0) + 1
        state.ledger, state.due = after, plan
        return after

    def _rotate_stale(self, row: int, plan: Plan, changed: set[int]) -> None:
        """Renew the rotated keys of the past that were changed or that stand elsewhere now; later ones in the pass."""
        state = self._rows[row]
        later = {slot for op in plan.first_pass for slot in touched(op)}
        standing = {s.start: (s.stop, s.position, s.phase) for s in plan.ledger.spans}
        stale = [
            span
            for span in plan.ledger.past
            if span.start not in later
            and (span.start in changed or state.rotated.get(span.start) != standing[span.start])
        ]
        if any(span.kind is SpanKind.RECENT for span in stale):
            stale += plan.ledger.chunk  # It lies among them, and the ranges stay the same when it moves on in the ring.
        if stale:
            for layer in range(self.shape.layers):
                self._rotated.rotate(layer, row, stale)
        state.rotated = standing

    def _place_chunk(self, row: int, chunk: Sequence[Span]) -> None:
        """Upload the chunk's slots, and take its rotation from the table."""
        tokens = self.shape.frame_tokens
        count = len(chunk) * tokens
        starts = torch.tensor([span.start for span in chunk], dtype=torch.int64)
        slots = (starts[:, None] + torch.arange(tokens)).flatten()
        upload(slots + row * self.policy.capacity_tokens, self._index[row, :count])
        upload(slots + row * self.policy.attended_tokens, self._rotated_index[row, :count])
        tables = self._bank.tables
        for target, table in ((self._cos, tables.cos), (self._sin, tables.sin)):
            torch.index_select(table.flatten(0, 1), 0, self._index[row, :count], out=target[row, :count])

    def view(self, rows: Sequence[int], frames: int | None = None) -> KVView:
        """What one forward pass of these rows uses; make one for each pass. frames: its first frames only.

        The rows' chunks are of equal length and attend to ranges of equal length (see `groups`). frames is the chunk's
        length (default) or its kept frames. Raises KVError otherwise, or when no chunk was begun.
        """
        ranges, counts, passes = set(), set(), []
        for row in rows:
            state = self._rows[row]
            chunk = state.ledger.chunk
            if not chunk:
                raise KVError(f"row {row} has no chunk: call begin({row}, frames) first")
            count = len(chunk) if frames is None else frames
            if not 1 <= count <= len(chunk):
                raise KVError(f"a pass of {count} latent frames in row {row}, whose chunk has {len(chunk)}")
            attended = (*state.ledger.past, *chunk[:count])
            if gaps(attended):
                kept = sum(span.kept for span in chunk)
                raise KVError(
                    f"a pass can take all {len(chunk)} latent frames of the chunk or the {kept} kept, not {count}"
                )
            ranges.add(attended_range(attended))
            counts.add(count)
            passes.append(self._pass(row, attended))
        if len(ranges) != 1 or len(counts) != 1:
            raise KVError(f"rows {tuple(rows)} attend to {sorted(ranges)}: pass them apart, as groups(rows) says")
        for row in rows:
            self._rows[row].due = None
        return self._view(tuple(rows), ranges.pop(), counts.pop() * self.shape.frame_tokens, passes)

    def _pass(self, row: int, attended: tuple[Span, ...]) -> RowPass:
        state = self._rows[row]
        due = state.due.first_pass if state.due is not None else ()
        moved = {slot for op in due for slot in touched(op)}
        again = tuple(span for span in state.ledger.past if span.start in moved)
        first = state.due is not None
        return RowPass(row=row, first=first, attended=attended, first_pass=due, moved=again)

    def _view(self, rows: tuple[int, ...], slots: tuple[int, int], tokens: int, passes: list[RowPass]) -> KVView:
        adjacent = rows == tuple(range(rows[0], rows[-1] + 1))
        which: slice | list[int] = slice(rows[0], rows[-1] + 1) if adjacent else list(rows)
        index, rotated_index, cos, sin = (
            t[which, :tokens] for t in (self._index, self._rotated_index, self._cos, self._sin)
        )
        return KVView(
            self._bank,
            self._rotated,
            passes,
            slots=slots,
            tokens=tokens,
            index=(index, rotated_index),
            rotation=(cos, sin),
        )

    def groups(self, rows: Sequence[int]) -> list[tuple[int, ...]]:
        """The rows in groups that one view can take together: equal chunks that attend to equal ranges."""
        found: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            state = self._rows[row]
            key = (*state.ledger.attended, len(state.ledger.chunk), int(state.due is not None))
            found.setdefault(key, []).append(row)
        return [tuple(group) for group in found.values()]

    def reset(self, row: int) -> None:
        """Forget everything in the row."""
        self._set(row, Ledger())

    def flush(self, row: int, keep_last_frames: int = 1) -> None:
        """Forget all but the sink (or context) and the last frames, as at a change of prompt."""
        if keep_last_frames < 0:
            raise KVError(f"keep_last_frames is {keep_last_frames}; it is 0 or more")
        self._set(row, self.policy.flush(self._passed(row).ledger, keep_last_frames))

    def scene_cut(self, row: int) -> None:
        """The next chunk begins another scene, in the way the policy has it."""
        self._set(row, self.policy.scene_cut(self._passed(row).ledger))

    def _passed(self, row: int) -> _Row:
        """The row, if its chunk has been seen by a pass: otherwise its place holds what nobody wrote for it."""
        state = self._rows[row]
        if state.due is not None:
            raise KVError(
                f"the chunk begun in row {row} was never passed: pass it (see view), or reset or restore the row"
            )
        return state

    def _set(self, row: int, ledger: Ledger) -> None:
        state = self._rows[row]
        state.ledger, state.due = ledger, None

    def snapshot_buffers(self, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...]:
        """Memory for the contents of one row, on `device` (default: the cache's own): what `snapshot` copies into."""
        place = self.shape.device if device is None else device
        return tuple(torch.empty_like(t[:, 0], device=place) for t in self._bank.by_slot)

    def snapshot(self, row: int, *, copy: bool = False, into: tuple[torch.Tensor, ...] | None = None) -> KVSnapshot:
        """The row as it is, between chunks. copy: with all contents. into: `snapshot_buffers` for them,
        whose snapshot is then no longer good; None: new memory on the cache's own device.

        Without a copy it is a few integers, and `restore` works for as long as what they name has not been overwritten.
        A policy that sums attention is always copied: its sums change with every chunk.
        """
        state = self._passed(row)
        parts = into
        if into is not None or copy or self.policy.accumulates:
            parts = self.snapshot_buffers() if into is None else into
            for target, tensor in zip(parts, self._bank.by_slot, strict=True):
                target.copy_(tensor[:, row])
        return KVSnapshot(ledger=state.ledger, written=dict(state.written), parts=parts)

    def restore(self, row: int, snapshot: KVSnapshot) -> None:
        """Back to a snapshot. Raises KVError when its contents are gone and it has no copy; then the row stays."""
        state, ledger = self._rows[row], snapshot.ledger
        if snapshot.parts is None:
            spans = (*ledger.spans, *ledger.pool)
            gone = [s.frame for s in spans if state.written.get(s.start) != snapshot.written.get(s.start)]
            if gone:
                raise KVError(
                    f"latent frames {gone} have been overwritten since the snapshot: take it with copy=True, "
                    "or reset the row and pass its clean frames again"
                )
        else:
            for tensor, part in zip(self._bank.by_slot, snapshot.parts, strict=True):
                tensor[:, row].copy_(part)
            state.written = {start: count + 1 for start, count in state.written.items()}
        state.rotated = {}
        self._set(row, ledger)

    def ledger(self, row: int) -> Ledger:
        """What stands in the row."""
        return self._rows[row].ledger

    def check_integrity(self) -> None:
        """Assert that spans, lengths, positions and storage agree, and positions are in the policy's stated range."""
        for row, state in enumerate(self._rows):
            check_row(self.policy, row, state.ledger)
            assert len(state.ledger.chunk) * self.shape.frame_tokens <= self._chunk_tokens, (row, state.ledger.chunk)
