"""Owns the policies that keep single tokens by score: participative compression, heavy hitters, and compression by
importance and redundancy.

How many tokens are kept, and at which slots and positions, is decided here; which ones, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import (
    Accumulated,
    ImportanceRedundancy,
    KVError,
    Ledger,
    Operation,
    Plan,
    Products,
    Region,
    Scoring,
    SelectTokens,
    Span,
    SpanKind,
)
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
class _Past:
    """The past of a row, split up, when a chunk begins: sinks, then candidates of which `targets` hold the best, then
    frames that stay whole. Without targets the candidates are evicted.
    """

    sinks: list[Span]
    candidates: list[Span]
    targets: list[Span]
    rest: list[Span]


def _compressed(policy: KVPolicy, ledger: Ledger, frames: int, keep: int, past: _Past, scoring: Scoring) -> Plan:
    """Select in the chunk's first pass. Candidates are scored where they stood, brought along so that the frames after
    them stand where they will; what is selected stands by slot: the token of rank i in frame i // frame_tokens of the
    targets, with its original row and column.
    """
    kept = [*past.sinks, *past.targets, *past.rest]
    survivors, chunk, moves = assign_cells(kept, ledger, frames, keep, policy.frame_cells)
    spans = survivors + chunk
    after = at_positions(spans, by_slot(spans, ledger, policy.jump_frames))
    first_pass: tuple[Operation, ...] = ()
    if past.targets:
        newest = (past.rest or past.candidates)[-1]
        shift = newest.position - after[len(survivors) - 1].position
        scored = tuple(replace(s, position=s.position - shift) for s in past.candidates)
        first_pass = (SelectTokens(candidates=scored, targets=tuple(past.targets), scoring=scoring), *moves)
    return Plan(
        ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep),
        now=() if first_pass else tuple(moves),
        first_pass=first_pass,
    )


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
        parts = _Past(sinks=sinks, candidates=candidates, targets=targets, rest=rest)
        return _compressed(self, ledger, frames, keep, parts, Products())

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
            now = (SelectTokens(candidates=tuple(candidates), targets=tuple(targets), scoring=Accumulated()),)
        survivors, chunk, moves = assign_cells(targets + rest, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, by_slot(spans, ledger, self.jump_frames))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=(*now, *moves))

    def position_range(self, ledger: Ledger) -> range:
        jump = self.jump_frames if ledger.cut_frame is not None else 0
        return range(self.heavy_frames + self.recent_frames + self.chunk_frames + jump)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceRedundancyPolicy(KVPolicy):
    """Of the older past, the tokens that matter to the current queries and are unlike the others. R1-KV, as FlowCache
    (2602.10825) uses it for video.

    While past and chunk fit into `window_frames`, everything is kept. A chunk that does not fit compresses what lies
    between the sink and the `recent_frames` newest frames, earlier selections included, until it fits. In each layer
    of the chunk's first pass each head keeps the tokens of the highest w * importance - (1 - w) * redundancy, see
    cache.kv.scores: importance from every `query_stride`-th query of the chunk and rotated keys, redundancy from
    unrotated keys, both among the candidates. The token of rank i occupies frame i // frame_tokens after the sink, with
    its original row and column. Every head selects for itself, as in R1-KV: heads attend to different things, and
    lockstep streams can share a row as additional heads. If sink and recent frames fill the window, nothing is
    selected and this is `SinkPolicy`, without a sink `WindowPolicy`.
    """

    window_frames: int = 21
    sink_frames: int = 0
    recent_frames: int = 3
    importance: float = 0.07
    pool_tokens: int = 7
    query_stride: int = 1

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.sink_frames < 0 or self.recent_frames < 1:
            raise KVError(
                f"sink_frames is {self.sink_frames} (0 or more), recent_frames {self.recent_frames} (1 or more)"
            )
        needed = self.sink_frames + self.recent_frames + self.chunk_frames
        if self.window_frames < needed:
            raise KVError(
                f"window_frames is {self.window_frames}, smaller than the sink of {self.sink_frames}, "
                f"{self.recent_frames} recent frames and a chunk of {self.chunk_frames}: make it at least {needed}"
            )
        if not 0 <= self.importance <= 1:
            raise KVError(f"importance is {self.importance}; it is the weight of the importance, 0 to 1")
        if self.pool_tokens < 1 or not self.pool_tokens % 2:
            raise KVError(f"pool_tokens is {self.pool_tokens}; it must be odd and at least 1 (no pooling)")
        if self.query_stride < 1:
            raise KVError(f"query_stride is {self.query_stride}; it must be at least 1 (every query)")

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.window_frames)

    @property
    def scores_queries(self) -> bool:
        return True

    @property
    def selects(self) -> int:
        return -1

    @property
    def weighs_attention(self) -> bool:
        return True

    def anchors(self, past: Sequence[Span]) -> int:
        return leading_frames(past, self.sink_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        sinks = [replace(s, kind=SpanKind.SINK) for s in past[: self.anchors(past)]]
        rest, candidates, targets = past[len(sinks) :], [], []
        room = self.window_frames - len(sinks) - frames
        if len(rest) > room:
            older = len(rest) - self.recent_frames
            candidates, rest = rest[:older], rest[older:]
            targets = _targets(candidates, room - self.recent_frames)
        parts = _Past(sinks=sinks, candidates=candidates, targets=targets, rest=rest)
        scoring = ImportanceRedundancy(importance=self.importance, pool_tokens=self.pool_tokens)
        return _compressed(self, ledger, frames, keep, parts, scoring)

    def position_range(self, ledger: Ledger) -> range:
        return range(self.window_frames + (self.jump_frames if ledger.cut_frame is not None else 0))
