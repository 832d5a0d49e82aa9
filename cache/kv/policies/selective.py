"""Owns the policies that keep single tokens by their score: participative compression, heavy hitters.

Which tokens, only the device knows; how many, and where they stand, is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Operation, Plan, Region, SelectTokens, Span, SpanKind
from cache.kv.policies.base import KVPolicy, by_slot, frames_of, leading_frames, placed, settle, standing


def _targets(candidates: Sequence[Span], frames: int) -> list[Span]:
    """The innermost cells of the candidates, for `frames` frames' worth of the tokens chosen among them."""
    cells = sorted((span.start, span.stop) for span in candidates)[:frames]
    return [Span(start=start, stop=stop, kind=SpanKind.SELECTED, frame=-1) for start, stop in cells]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipativePolicy(KVPolicy):
    """Deep sink, the tokens that matter to the current queries, and recent frames. Deep Forcing (2512.05081).

    While past and chunk fit into `window_frames`, everything is kept. A chunk that does not fit compresses the past to
    `budget_frames`: the sink, budget - sink - recent frames' worth of tokens, and the most recent frames. Chosen in
    each layer of the chunk's first pass: score of token j = sum over the chunk's queries r and all heads of q_r . k_j,
    both rotated as they stand; candidates are all tokens outside sink and recent frames, earlier choices included; the
    best are kept in order. Temporal unification: they stand in the frames that follow the sink, token of rank i in
    frame sink + i // frame_tokens, keeping the row and column they came from.
    """

    window_frames: int = 21
    sink_frames: int = 10
    budget_frames: int = 16
    recent_frames: int = 4

    def validate(self) -> None:
        KVPolicy.validate(self)
        if min(self.sink_frames, self.recent_frames) < 0:
            raise KVError(f"sink_frames is {self.sink_frames}, recent_frames {self.recent_frames}; each is 0 or more")
        if self.budget_frames < self.sink_frames + self.recent_frames + 1:
            raise KVError(
                f"budget_frames is {self.budget_frames}; it holds the sink of {self.sink_frames}, {self.recent_frames} "
                f"recent frames and at least 1 chosen: make it at least {self.sink_frames + self.recent_frames + 1}"
            )
        if self.window_frames < self.budget_frames + self.chunk_frames:
            raise KVError(
                f"window_frames is {self.window_frames}, smaller than the budget of {self.budget_frames} and a chunk "
                f"of {self.chunk_frames}: make it at least {self.budget_frames + self.chunk_frames}"
            )

    @property
    def regions(self) -> tuple[Region, ...]:
        return frames_of(self.grid, self.window_frames)

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
        past = standing(ledger)
        sinks = [replace(s, kind=SpanKind.SINK) for s in past[: self.anchors(past)]]
        rest, candidates, targets = past[len(sinks) :], [], []
        if len(past) + frames > self.window_frames:
            older = len(rest) - self.recent_frames
            candidates, rest = rest[:older], rest[older:]
            targets = _targets(candidates, self.budget_frames - self.sink_frames - self.recent_frames)
        survivors, chunk, moves = settle(sinks + targets + rest, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = placed(spans, by_slot(spans, ledger, self.jump_frames))
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
    """The tokens that have received most attention, and the recent ones. H2O (2306.14048, section 4).

    The budget is half recent, half heavy (`heavy_frames`, `recent_frames`: frames' worth of tokens, without the chunk).
    What a token has received: softmax attention summed over the queries of every chunk's first pass (each
    `query_stride`-th of them), per layer and head, as long as it is kept. When more than the budget stands, each head
    keeps its own heaviest tokens of all but the recent frames, in order; they stand in frames 0 to heavy_frames - 1 by
    rank, keeping the row and column they came from.
    """

    heavy_frames: int = 9
    recent_frames: int = 9
    query_stride: int = 1

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.heavy_frames < 1 or self.recent_frames < 1:
            raise KVError(
                f"heavy_frames is {self.heavy_frames}, recent_frames {self.recent_frames}; each is at least 1"
            )
        if self.query_stride < 1:
            raise KVError(f"query_stride is {self.query_stride}; 1 looks at every query")

    @property
    def regions(self) -> tuple[Region, ...]:
        return frames_of(self.grid, self.heavy_frames + self.recent_frames + self.chunk_frames)

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
        rest = standing(ledger)
        targets: list[Span] = []
        now: tuple[Operation, ...] = ()
        if len(rest) > self.heavy_frames + self.recent_frames:
            older = len(rest) - self.recent_frames
            candidates, rest = rest[:older], rest[older:]
            targets = _targets(candidates, self.heavy_frames)
            now = (SelectTokens(candidates=tuple(candidates), targets=tuple(targets), accumulated=True),)
        survivors, chunk, moves = settle(targets + rest, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = placed(spans, by_slot(spans, ledger, self.jump_frames))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=(*now, *moves))

    def position_range(self, ledger: Ledger) -> range:
        jump = self.jump_frames if ledger.cut_frame is not None else 0
        return range(self.heavy_frames + self.recent_frames + self.chunk_frames + jump)
