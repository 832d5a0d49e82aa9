"""Owns the policy with three partitions: a sink, pooled blocks of the middle past, and recent frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import (
    KVError,
    Ledger,
    Operation,
    Plan,
    PoolFrames,
    Region,
    SelectBlocks,
    Span,
    SpanKind,
    frame_region,
)
from cache.kv.policies.base import KVPolicy, assign_cells, at_positions, by_slot, kept_spans, leading_frames

SELECTIONS = ("top-k", "recent")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPolicy(KVPolicy):
    """Sink, mid, recent: frames that age out of the recent ones are pooled. PackForcing (2603.25730).

    Blocks of `block_frames` that leave the `recent_frames` become (block/2) * (rows/4) * (columns/4) tokens (34 times
    fewer at 30 x 52): here without training, as mean keys and values over boxes of `pooling` = (frames, rows,
    columns), positioned at the centre of their box. `mid_blocks` of these blocks are attended, in temporal order:
    selection "top-k": the best of the latest `pool_blocks`, chosen in each layer of a chunk's first pass by the sum
    over queries (every `query_stride`-th) and tokens of q . k, mean over half of the heads;
    selection "recent": the latest (steadier from chunk to chunk).
    Positions: sink, mid (each block counts block_frames), recent, chunk, without gaps, so the sink is re-aligned as
    blocks come and go. At 480 x 832 with chunks of 4: 27,872 tokens per pass.
    """

    chunk_frames: int = 4
    sink_frames: int = 8
    mid_blocks: int = 16
    block_frames: int = 4
    recent_frames: int = 4
    pooling: tuple[int, int, int] = (2, 4, 4)
    selection: str = "top-k"
    pool_blocks: int = 32
    query_stride: int = 1

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.sink_frames < 0 or self.mid_blocks < 1 or self.query_stride < 1:
            raise KVError(
                f"sink_frames is {self.sink_frames} (0 or more), mid_blocks {self.mid_blocks} and query_stride "
                f"{self.query_stride} (1 or more)"
            )
        if self.selection not in SELECTIONS:
            raise KVError(f"selection is {self.selection!r}; choose one of {', '.join(SELECTIONS)}")
        if self.recent_frames < self.block_frames - 1:
            raise KVError(
                f"recent_frames is {self.recent_frames}, and blocks of {self.block_frames} leave it at once: "
                f"make it at least {self.block_frames - 1}"
            )
        if self.selection == "top-k" and self.pool_blocks < self.mid_blocks:
            raise KVError(
                f"pool_blocks is {self.pool_blocks}; {self.mid_blocks} are selected from them: "
                f"make it at least {self.mid_blocks}"
            )
        if min(self.pooling) < 1 or self.block_frames % self.pooling[0] or not self.pooled_tokens:
            raise KVError(
                f"pooling is {self.pooling} for blocks of {self.block_frames} frames of {self.grid} tokens: its first "
                "number must divide block_frames, and a frame must hold at least one box"
            )

    @property
    def pooled_tokens(self) -> int:
        """Tokens per pooled block."""
        frames, rows, columns = self.pooling
        return (self.block_frames // frames) * (self.grid[0] // rows) * (self.grid[1] // columns)

    def _blocks(self, start: int, cells: int) -> Region:
        """A region of pooled blocks; each token is at the centre of its box, frames first, then rows."""
        frames, rows, columns = self.pooling
        boxes = [
            (t * frames + (frames - 1) / 2, y * rows + (rows - 1) / 2, x * columns + (columns - 1) / 2)
            for t in range(self.block_frames // frames)
            for y in range(self.grid[0] // rows)
            for x in range(self.grid[1] // columns)
        ]
        t, y, x = zip(*boxes, strict=True)
        return Region(start=start, cells=cells, t=t, y=y, x=x)

    @property
    def regions(self) -> tuple[Region, ...]:
        """Attended blocks, filled from last to first; frames; and with top-k the pool to select from."""
        mid = self._blocks(0, self.mid_blocks)
        frames = frame_region(self.grid, self.sink_frames + self.recent_frames + self.chunk_frames, start=mid.stop)
        if self.selection == "recent":
            return mid, frames
        return mid, frames, self._blocks(frames.stop, self.pool_blocks)

    @property
    def frame_cells(self) -> Region:
        return self.regions[1]

    @property
    def attended_tokens(self) -> int:
        return self.regions[1].stop

    @property
    def scores_queries(self) -> bool:
        return self.selection == "top-k"

    def anchors(self, past: Sequence[Span]) -> int:
        return leading_frames(past, self.sink_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        sinks = [replace(s, kind=SpanKind.SINK) for s in past[: self.anchors(past)]]
        recent = [s for s in past[len(sinks) :] if s.kind is SpanKind.RECENT]
        top_k = self.selection == "top-k"
        blocks = list(ledger.pool) if top_k else [s for s in past if s.kind is SpanKind.MID]
        pooled: list[Operation] = []
        while len(recent) > self.recent_frames:
            block, recent = recent[: self.block_frames], recent[self.block_frames :]
            blocks, target = self._next_block(blocks, block[0].frame)
            pooled.append(PoolFrames(sources=tuple(block), target=target))
        mids = self._selected(len(blocks)) if top_k else blocks
        survivors, chunk, moves = assign_cells(sinks + recent, ledger, frames, keep, self.frame_cells)
        spans = survivors[: len(sinks)] + mids + survivors[len(sinks) :] + chunk
        after = at_positions(spans, by_slot(spans, ledger, self.jump_frames))
        mid_end = len(sinks) + len(mids) * self.block_frames
        pool = [mid_end - (len(blocks) - i) * self.block_frames for i in range(len(blocks))] if top_k else []
        candidates = at_positions(blocks, pool) if top_k else ()
        first_pass: tuple[Operation, ...] = ()
        if candidates:
            targets = tuple(s for s in after if s.kind is SpanKind.MID)
            first_pass = (SelectBlocks(candidates=candidates, targets=targets),)
        return Plan(
            ledger=replace(ledger, spans=after, pool=candidates, next_frame=ledger.next_frame + keep),
            now=(*pooled, *moves),
            first_pass=first_pass,
        )

    def _next_block(self, blocks: list[Span], frame: int) -> tuple[list[Span], Span]:
        """Append a block; if full, the oldest is evicted and its cell reused."""
        top_k = self.selection == "top-k"
        region, limit = (self.regions[2], self.pool_blocks) if top_k else (self.regions[0], self.mid_blocks)
        if len(blocks) == limit:
            start, stop = blocks[0].start, blocks[0].stop
            blocks = blocks[1:]
        else:
            start, stop = region.slots(len(blocks) if top_k else limit - 1 - len(blocks))
        kind = SpanKind.POOL if top_k else SpanKind.MID
        block = Span(start=start, stop=stop, kind=kind, frame=frame, frames=self.block_frames)
        return [*blocks, block], block

    def _selected(self, blocks: int) -> list[Span]:
        """The attended blocks, selected from `blocks`, in temporal order, next to the frames."""
        count = min(blocks, self.mid_blocks)
        cells = [self.regions[0].slots(self.mid_blocks - count + i) for i in range(count)]
        return [Span(start=a, stop=b, kind=SpanKind.MID, frame=-1, frames=self.block_frames) for a, b in cells]

    def position_range(self, ledger: Ledger) -> range:
        frames = self.sink_frames + self.mid_blocks * self.block_frames + self.recent_frames + self.chunk_frames
        return range(frames + (self.jump_frames if ledger.cut_frame is not None else 0))
