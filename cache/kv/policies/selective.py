"""Owns the policies that keep single tokens by score: participative compression, heavy hitters.

How many tokens are kept, and at which slots and positions, is decided here; which ones, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Operation, Plan, Region, SelectTokens, Span, SpanKind
from cache.kv.policies.base import (
    KVPolicy,
    assign_cells,
    at_positions,
    by_slot,
    frame_regions,
    kept_spans,
    leading_frames,
)


def _targets(candidates: Sequence[Span], frames: int) -> list[Span]:
    """The candidates' innermost cells, for `frames` frames' worth of tokens selected among them."""
    cells = sorted((span.start, span.stop) for span in candidates)[:frames]
    return [Span(start=start, stop=stop, kind=SpanKind.SELECTED, frame=-1) for start, stop in cells]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipativePolicy(KVPolicy):
    """Deep sink, the tokens most relevant to the current queries, and recent frames. Deep Forcing (2512.05081).

    While past and chunk fit into `window_frames`, everything is kept. A chunk that does not fit compresses the past to
    `budget_frames`: the sink, budget - sink - recent frames' worth of tokens, and the most recent frames. Selected in
    each layer of the chunk's first pass: score of token j = sum over the chunk's queries r and all heads of q_r . k_j,
    both rotated at their current positions; candidates are all tokens outside sink and recent frames, earlier
    selections included; the best are kept in order. Temporal unification: they occupy the frames after the sink, the
    token of rank i in frame sink + i // frame_tokens, with their original row and column.
    """

    window_frames: int = 21
    sink_frames: int = 10
    budget_frames: int = 16
    recent_frames: int = 4

    def validate(self) -> None:
        KVPolicy.validate(self)
        if min(self.sink_frames, self.recent_frames) < 0:
            raise KVError(
                f"sink_frames is {self.sink_frames}, recent_frames {self.recent_frames}; each must be 0 or more"
            )
        if self.budget_frames < self.sink_frames + self.recent_frames + 1:
            raise KVError(
                f"budget_frames is {self.budget_frames}; it holds the sink of {self.sink_frames}, {self.recent_frames} "
                f"recent frames and at least 1 selected: make it at least {self.sink_frames + self.recent_frames + 1}"
            )
        if self.window_frames < self.budget_frames + self.chunk_frames:
            raise KVError(
                f"window_frames is {self.window_frames}, smaller than the budget of {self.budget_frames} and a chunk "
                f"of {self.chunk_frames}: make it at least {self.budget_frames + self.chunk_frames}"
            )

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.window_frames)

    @property
    def scores_queries(self) -> bool:
        return True

    @property
    def selects(self) -> int:
        return 1

    def anchors(self, past: Sequence[Span]) -> int:
        return leading_frames(past, self.sink_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        sinks = [replace(s, kind=SpanKind.SINK) for s in past[: self.anchors(past)]]
        rest, candidates, targets = past[len(sinks) :], [], []
        if len(past) + frames > self.window_frames:
            older = len(rest) - self.recent_frames
            candidates, rest = rest[:older], rest[older:]
            targets = _targets(candidates, self.budget_frames - self.sink_frames - self.recent_frames)
        survivors, chunk, moves = assign_cells(sinks + targets + rest, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, by_slot(spans, ledger, self.jump_frames))
        first_pass: tuple[Operation, ...] = ()
        if candidates:
            shift = past[-1].position - after[len(survivors) - 1].position
            scored = tuple(replace(s, position=s.position - shift) for s in candidates)
            first_pass = (SelectTokens(candidates=scored, targets=tuple(targets)), *moves)
        return Plan(
            ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep),
            now=() if candidates else tuple(moves),
            first_pass=first_pass,
        )

    def position_range(self, ledger: Ledger) -> range:
        return range(self.window_frames + (self.jump_frames if ledger.cut_frame is not None else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeavyHitterPolicy(KVPolicy):
    """The tokens that have received the most attention, and the recent ones. H2O (2306.14048, section 4).

    The budget is half recent, half heavy (`heavy_frames`, `recent_frames`: frames' worth of tokens, without the chunk).
    A token's score: softmax attention received, summed over the queries of every chunk's first pass (every
    `query_stride`-th), per layer and head, while the token is kept. Over budget, each head keeps its own heaviest
    tokens outside the recent frames, in order; they occupy frames 0 to heavy_frames - 1 by rank, with their original
    row and column.
    """

    heavy_frames: int = 9
    recent_frames: int = 9
    query_stride: int = 1

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.heavy_frames < 1 or self.recent_frames < 1:
            raise KVError(
                f"heavy_frames is {self.heavy_frames}, recent_frames {self.recent_frames}; each must be at least 1"
            )
        if self.query_stride < 1:
            raise KVError(f"query_stride is {self.query_stride}; it must be at least 1 (every query)")

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.heavy_frames + self.recent_frames + self.chunk_frames)

    @property
    def accumulates(self) -> bool:
        return True

    @property
    def selects(self) -> int:
        return -1

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        rest = kept_spans(ledger)
        targets: list[Span] = []
        now: tuple[Operation, ...] = ()
        if len(rest) > self.heavy_frames + self.recent_frames:
            older = len(rest) - self.recent_frames
            candidates, rest = rest[:older], rest[older:]
            targets = _targets(candidates, self.heavy_frames)
            now = (SelectTokens(candidates=tuple(candidates), targets=tuple(targets), accumulated=True),)
        survivors, chunk, moves = assign_cells(targets + rest, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, by_slot(spans, ledger, self.jump_frames))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=(*now, *moves))

    def position_range(self, ledger: Ledger) -> range:
        jump = self.jump_frames if ledger.cut_frame is not None else 0
        return range(self.heavy_frames + self.recent_frames + self.chunk_frames + jump)
