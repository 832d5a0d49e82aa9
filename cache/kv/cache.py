"""Owns the KV cache of a causal transformer: rows of history, beginning a chunk, views, rewind, integrity.

Works on tensors and integers, never on video frames or prompts. Keys are stored unrotated. Policies decide with host
integers; in steady state all shapes and addresses are constant and nothing synchronises with the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from cache.kv.bank import STORAGES, Bank
from cache.kv.integrity import check_row
from cache.kv.kernels import PLAIN_KERNELS, KVKernels
from cache.kv.ops import run, touched
from cache.kv.plan import KVError, Ledger, Move, Plan, SelectBlocks, SelectTokens, Span, SpanKind, attended_range, gaps
from cache.kv.policies import KVPolicy
from cache.kv.recall import Kept, Refresh
from cache.kv.store import KVShape
from cache.kv.tables import upload
from cache.kv.view import KVView, RowPass
from cache.rotary import Rotary

__all__ = ["KVCache", "KVShape", "KVSnapshot"]


@dataclass(slots=True)
class _Row:
    """A row's state on the host."""

    ledger: Ledger = field(default_factory=Ledger)
    pending: Plan | None = None
    """The plan of a chunk that no view has taken yet."""
    rotated: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """First slot -> (stop, position, phase) of the spans whose rotated keys are up to date."""
    versions: dict[int, int] = field(default_factory=dict)
    """First slot -> how many times its contents have been replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSnapshot:
    """What `restore` needs. parts: copies of all slots' contents; None: host integers only."""

    ledger: Ledger
    versions: dict[int, int]
    rotated: dict[int, tuple[int, int, int]]
    parts: tuple[torch.Tensor, ...] | None

    @property
    def bytes(self) -> int:
        """Size of the copies."""
        return sum(t.nbytes for t in self.parts or ())


class KVCache:
    """Keys and values of `shape.cache_rows` histories under one policy.

    storage: "native" also keeps a rotated copy of all keys (3 units of memory), "lean" rotates in every pass (2 units),
    "int8" stores 8-bit integers with a scale per token and head and rotates in every pass (about 1 unit of 16-bit
    keys). "rotated" stores keys rotated, at positions of its own that never change (2 units, fastest), if the policy
    keeps distances; for others it is as native. "fp8" is the same in e4m3. kernels: compiled ones, if available.
    Raises KVError for an unknown storage, one that the policy cannot use, or a policy made for another grid.
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
            raise KVError(f"unknown KV storage {storage!r}; choose one of {', '.join(STORAGES)}")
        if policy.grid != shape.grid:
            raise KVError(
                f"the policy was made for the grid {policy.grid} and the cache for {shape.grid}: use the same grid"
            )
        if rotary.head_dim != shape.head_dim:
            raise KVError(
                f"the rotary embedding has head_dim {rotary.head_dim} and the cache {shape.head_dim}: use the same"
            )
        if storage == "fp8" and policy.weighs_attention:
            raise KVError("the storage 'fp8' scales keys, so attention cannot be weighed or summed: use 'native'")
        if shape.boundaries and storage in ("rotated", "fp8") and policy.keeps_distances:
            raise KVError(f"the storage {storage!r} has no unrotated keys to pass frames again from: use 'native'")
        make_store, make_rotated = STORAGES[storage]
        self.shape, self.policy, self.storage = shape, policy, storage
        self._bank = Bank(shape, policy, rotary, make_store(shape, policy), kernels)
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
        """All device memory of this cache."""
        own = (self._index, self._rotated_index, self._cos, self._sin)
        return sum(t.nbytes for t in (*self._bank.tensors, *self._rotated.tensors, *own))

    def begin(self, row: int, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None) -> Ledger:
        """Make room for a chunk of `frames` latent frames, and rotate what is kept to its new positions.

        keep: how many of its first frames stay when the next chunk begins (Rolling Forcing: 3 of 15, and none while its
        window fills); default all.
        shots: the frames' shot indices, for policies with phases. Returns the row's new ledger. Raises KVError, and
        leaves the row unchanged, if the policy cannot hold such a chunk or no pass has run on the previous one.
        """
        state = self._ready_row(row)
        plan = self.policy.plan(state.ledger, frames, keep=keep, shots=shots)
        after = plan.ledger
        changed = {slot for op in plan.now for slot in touched(op)}
        for op in (*plan.now, *plan.first_pass):
            if isinstance(op, SelectTokens | SelectBlocks):
                self._bank.prepare(row, op)
        for op in plan.now:
            for layer in range(self.shape.layers):
                run(self._bank, layer, row, op)
        if self._rotated.keeps:
            self._place(row, plan)
        else:
            self._bank.tables.update(row, (*after.spans, *after.pool))
            self._rotate_stale(row, plan, changed)
        self._bank.reset_slots(row, after.chunk)
        self._upload_chunk(row, after.chunk)
        for slot in changed | {s.start for s in after.chunk} | {s for op in plan.first_pass for s in touched(op)}:
            state.versions[slot] = state.versions.get(slot, 0) + 1
        state.ledger, state.pending = after, plan
        return after

    def _rotate_stale(self, row: int, plan: Plan, changed: set[int]) -> None:
        """Rotate again the past spans that changed or moved in time; those of the first pass are rotated there."""
        state = self._rows[row]
        later = {slot for op in plan.first_pass for slot in touched(op)}
        current = {s.start: (s.stop, s.position, s.phase) for s in plan.ledger.spans}
        stale = [
            span
            for span in plan.ledger.past
            if span.start not in later
            and (span.start in changed or state.rotated.get(span.start) != current[span.start])
        ]
        if any(span.kind is SpanKind.RECENT for span in stale):
            stale += plan.ledger.chunk  # It lies among them: the ranges stay the same as it moves through the ring.
        if stale:
            for layer in range(self.shape.layers):
                self._rotated.rotate(layer, row, stale)
        state.rotated = current

    def _place(self, row: int, plan: Plan) -> None:
        """Give the chunk positions that continue those in which the past is rotated. Past spans whose distances to the
        newest one changed all the same (a second scene cut within the window) are turned by the difference.
        """
        state = self._rows[row]
        for op in plan.now:
            assert isinstance(op, Move), op
            _, position, phase = state.rotated[op.source]
            state.rotated[op.target] = (op.target + op.length, position, phase)
        past = plan.ledger.past
        shift = state.rotated[past[-1].start][1] - past[-1].position if past else 0
        placed = [replace(span, position=span.position + shift) for span in plan.ledger.spans]
        for span in placed[: len(past)]:
            distance = span.position - state.rotated[span.start][1]
            for layer in range(self.shape.layers if distance else 0):
                self._rotated.turn(layer, row, span, distance)
        self._bank.tables.update(row, placed)
        state.rotated.update({s.start: (s.stop, s.position, s.phase) for s in placed})

    def _upload_chunk(self, row: int, chunk: Sequence[Span]) -> None:
        """Upload the chunk's slots, and take its rotation from the tables."""
        tokens = self.shape.frame_tokens
        count = len(chunk) * tokens
        starts = torch.tensor([span.start for span in chunk], dtype=torch.int64)
        slots = (starts[:, None] + torch.arange(tokens)).flatten()
        upload(slots + row * self.policy.capacity_tokens, self._index[row, :count])
        upload(slots + row * self.policy.attended_tokens, self._rotated_index[row, :count])
        tables = self._bank.tables
        for target, table in ((self._cos, tables.cos), (self._sin, tables.sin)):
            torch.index_select(table.flatten(0, 1), 0, self._index[row, :count], out=target[row, :count])

    def view(self, rows: Sequence[int], frames: int | None = None, *, refresh: Refresh | None = None) -> KVView:
        """The view of one forward pass over these rows; create one for each pass. frames: only the first frames.
        refresh: for one row, whose chunk was passed before: what of that it keeps.

        The rows' chunks must have the same length and attend to the same range (see `groups`). frames is the chunk's
        length (default) or its kept frames. Raises KVError otherwise, or if no chunk was begun.
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
            raise KVError(f"rows {tuple(rows)} attend to {sorted(ranges)}: pass them separately, see groups(rows)")
        for row in rows:
            self._rows[row].pending = None
        assert refresh is None or (len(passes) == 1 and self.shape.boundaries), (rows, self.shape.boundaries)
        return self._view(tuple(rows), ranges.pop(), counts.pop() * self.shape.frame_tokens, passes, refresh)

    def _pass(self, row: int, attended: tuple[Span, ...]) -> RowPass:
        state = self._rows[row]
        operations = state.pending.first_pass if state.pending is not None else ()
        changed = {slot for op in operations for slot in touched(op)}
        moved = tuple(span for span in state.ledger.past if span.start in changed)
        first = state.pending is not None
        return RowPass(row=row, first=first, attended=attended, first_pass=operations, moved=moved)

    def _view(
        self,
        rows: tuple[int, ...],
        slots: tuple[int, int],
        tokens: int,
        passes: list[RowPass],
        refresh: Refresh | None,
    ) -> KVView:
        adjacent = rows == tuple(range(rows[0], rows[-1] + 1))
        selector: slice | list[int] = slice(rows[0], rows[-1] + 1) if adjacent else list(rows)
        index, rotated_index, cos, sin = (
            t[selector, :tokens] for t in (self._index, self._rotated_index, self._cos, self._sin)
        )
        return KVView(
            self._bank,
            self._rotated,
            passes,
            slots=slots,
            tokens=tokens,
            index=(index, rotated_index),
            rotation=(cos, sin),
            refresh=refresh,
        )

    def keep(self, row: int, frames: Sequence[int]) -> Kept:
        """Copies of whole latent frames of a row, in this order, to pass them again; for a shape with boundaries."""
        assert self._bank.hidden is not None, "the cache stores no hidden states"
        spans = {span.frame: span for span in self._ready_row(row).ledger.spans}
        slots = torch.cat([torch.arange(spans[frame].start, spans[frame].stop) for frame in frames])
        index = torch.empty_like(slots, device=self.shape.device)
        upload(slots, index)
        taken = [self._bank.store.take(layer, row, index) for layer in range(self.shape.boundaries[-1])]
        keys, values = (torch.stack(part) for part in zip(*taken, strict=True))
        return Kept(keys=keys, values=values, hidden=self._bank.hidden[:, row].index_select(1, index))

    def groups(self, rows: Sequence[int]) -> list[tuple[int, ...]]:
        """The rows in groups that one view can take together: equal chunks that attend to equal ranges."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            state = self._rows[row]
            key = (*state.ledger.attended, len(state.ledger.chunk), int(state.pending is not None))
            groups.setdefault(key, []).append(row)
        return [tuple(group) for group in groups.values()]

    def reset(self, row: int) -> None:
        """Empty the row."""
        self._set(row, Ledger())

    def flush(self, row: int, keep_last_frames: int = 1) -> None:
        """Drop all but the sink (or context) and the last frames, as at a prompt change."""
        if keep_last_frames < 0:
            raise KVError(f"keep_last_frames is {keep_last_frames}; it must be 0 or more")
        self._set(row, self.policy.flush(self._ready_row(row).ledger, keep_last_frames))

    def scene_cut(self, row: int) -> None:
        """Begin a new scene with the next chunk, as the policy defines it."""
        self._set(row, self.policy.scene_cut(self._ready_row(row).ledger))

    def _ready_row(self, row: int) -> _Row:
        """The row, if a pass has run on its chunk: until then the chunk's slots hold stale contents."""
        state = self._rows[row]
        if state.pending is not None:
            raise KVError(
                f"no pass has run on the chunk begun in row {row}: run one (see view), or reset or restore the row"
            )
        return state

    def _set(self, row: int, ledger: Ledger) -> None:
        state = self._rows[row]
        state.ledger, state.pending = ledger, None

    def snapshot_buffers(self, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...]:
        """Buffers for the contents of one row, on `device` (default: the cache's own), for `snapshot` to copy into."""
        target = self.shape.device if device is None else device
        return tuple(torch.empty_like(t[:, 0], device=target) for t in self._bank.by_slot)

    def snapshot(self, row: int, *, copy: bool = False, into: tuple[torch.Tensor, ...] | None = None) -> KVSnapshot:
        """The row's current state, between chunks. copy: with all contents. into: `snapshot_buffers` to copy into,
        which invalidates their previous snapshot; None: new memory on the cache's own device.

        Without a copy it is a few integers, and `restore` works until the spans they name are overwritten. A policy
        that sums attention is always copied: its sums change with every chunk.
        """
        state = self._ready_row(row)
        parts = into
        if into is not None or copy or self.policy.accumulates:
            parts = self.snapshot_buffers() if into is None else into
            for target, tensor in zip(parts, self._bank.by_slot, strict=True):
                target.copy_(tensor[:, row])
        rotated = dict(state.rotated)
        return KVSnapshot(ledger=state.ledger, versions=dict(state.versions), rotated=rotated, parts=parts)

    def restore(self, row: int, snapshot: KVSnapshot) -> None:
        """Restore a snapshot. Raises KVError, and leaves the row unchanged, if its contents were overwritten and it has
        no copy.
        """
        state, ledger = self._rows[row], snapshot.ledger
        if snapshot.parts is None:
            spans = (*ledger.spans, *ledger.pool)
            overwritten = [s.frame for s in spans if state.versions.get(s.start) != snapshot.versions.get(s.start)]
            if overwritten:
                raise KVError(
                    f"latent frames {overwritten} have been overwritten since the snapshot: take it with copy=True, "
                    "or reset the row and pass its clean frames again"
                )
        else:
            for tensor, part in zip(self._bank.by_slot, snapshot.parts, strict=True):
                tensor[:, row].copy_(part)
            state.versions = {start: count + 1 for start, count in state.versions.items()}
            state.rotated = dict(snapshot.rotated)
        if not self._rotated.keeps:
            state.rotated = {}
        self._set(row, ledger)

    def ledger(self, row: int) -> Ledger:
        """The row's ledger."""
        return self._rows[row].ledger

    def check_integrity(self) -> None:
        """Assert that spans, lengths, positions and storage agree, and positions are in the policy's range."""
        for row, state in enumerate(self._rows):
            check_row(self.policy, row, state.ledger)
            assert len(state.ledger.chunk) * self.shape.frame_tokens <= self._chunk_tokens, (row, state.ledger.chunk)
