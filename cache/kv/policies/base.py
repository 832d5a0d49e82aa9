"""Owns what all KV policies share: the base class, position rules, and the assignment of slots.

Host integers only. A policy is a frozen dataclass: its configuration and its rule are one object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Move, Plan, Region, Span, SpanKind, frame_region

PositionRule = Callable[[Sequence[Span], Ledger, int], list[int]]
"""(spans in temporal order, the ledger before, jump) -> the position of each, in latent frames."""


def by_slot(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Positions count cached frames: 0, 1, 2, ... StreamingLLM (2309.17453, 3.2); LongLive's infinite mode.

    Frames after a scene cut are shifted by `jump` positions while frames from before it are kept.
    """
    positions, reached = [], 0
    cut = -1 if ledger.cut_frame is None else ledger.cut_frame
    gap = jump if any(span.frame < cut for span in spans) else 0
    for span in spans:
        positions.append(reached + (gap if span.frame >= cut else 0))
        reached += span.frames
    return positions


def absolute(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Positions are the frames' own indices, the sink's included: Self-Forcing (2506.08009), LongLive 1."""
    return [span.frame for span in spans]


def realigned(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Recent frames keep their own indices; the sink is placed right before them: Deep Forcing (2512.05081)."""
    sinks = [span for span in spans if span.kind is SpanKind.SINK]
    rest = [span.frame for span in spans if span.kind is not SpanKind.SINK]
    first = rest[0] if rest else ledger.next_frame
    return [first - len(sinks) + i for i in range(len(sinks))] + rest


POSITION_RULES: Mapping[str, PositionRule] = {"slot": by_slot, "absolute": absolute, "realigned": realigned}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPolicy(ABC):
    """The policy of one cache. grid: (rows, columns) of tokens in a latent frame; chunk_frames: the largest chunk.

    Raises KVError for invalid values, with the remedy.
    """

    grid: tuple[int, int]
    chunk_frames: int = 3
    jump_frames: int = 16
    """Gap in positions that a scene cut puts between old and new frames."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise KVError for invalid values. Subclasses add their checks."""
        if min(self.grid) < 1:
            raise KVError(f"grid is {self.grid}; it is (rows, columns) of tokens in a latent frame, each at least 1")
        if self.chunk_frames < 1:
            raise KVError(f"chunk_frames is {self.chunk_frames}; it must be at least 1")
        if self.jump_frames < 0:
            raise KVError(f"jump_frames is {self.jump_frames}; it must be 0 or more, a scene cut jumps forward")

    @property
    @abstractmethod
    def regions(self) -> tuple[Region, ...]:
        """All slots of a row: contiguous regions from slot 0; the last may be a pool that is not attended."""

    @abstractmethod
    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        """How to begin a chunk of `frames` latent frames in a row with `ledger`.

        keep: how many of its first frames stay when the next chunk begins (default all). shots: the frames' shot
        indices, for policies that have phases. Raises KVError if the chunk does not fit.
        """

    @abstractmethod
    def position_range(self, ledger: Ledger) -> range:
        """The positions that this policy may assign to the ledger's spans."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def capacity_tokens(self) -> int:
        """Number of slots in a row."""
        return self.regions[-1].stop

    @property
    def begin_frames(self) -> int:
        """Maximum latent frames of one `begin`: a chunk, or a context passed like one."""
        return self.chunk_frames

    @property
    def attended_tokens(self) -> int:
        """How many slots, from the first, can be attended: all but the pool."""
        return self.capacity_tokens

    @property
    def pooling(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of tokens that pooling averages into one."""
        return (1, 1, 1)

    @property
    def frame_cells(self) -> Region:
        """The region of whole frames."""
        return self.regions[0]

    @property
    def scores_queries(self) -> bool:
        """True: what is kept depends on the queries of a chunk's first pass."""
        return False

    @property
    def accumulates(self) -> bool:
        """True: the attention that each token receives is summed, per head."""
        return False

    @property
    def weighs_attention(self) -> bool:
        """True: attention weights decide what is kept, so queries and keys must be given in their true scale."""
        return self.accumulates

    @property
    def compares(self) -> bool:
        """True: the means of stored keys and values decide what is kept."""
        return False

    @property
    def selects(self) -> int:
        """Who selects single tokens: 0 = nobody, 1 = all heads together, -1 = each head separately."""
        return 0

    @property
    def query_stride(self) -> int:
        """Stride over the queries used for scoring."""
        return 1

    @property
    def keeps_distances(self) -> bool:
        """True: kept frames stay at constant distances in time (scene cuts aside) and no operation reads unrotated
        keys, so that keys need to be rotated only once.
        """
        return False

    @property
    def phase_step(self) -> float:
        """Radians added to all temporal angles per shot index."""
        return 0.0

    def anchors(self, past: Sequence[Span]) -> int:
        """How many of the first spans are never evicted (sink or context)."""
        return 0

    def flush(self, ledger: Ledger, keep_last_frames: int = 1) -> Ledger:
        """At a prompt change, keep the sink and the last frames only (Infinity-RoPE, 2511.20649: KV Flush)."""
        past = kept_spans(ledger)
        anchors = self.anchors(past)
        rest = [span for span in past[anchors:] if span.kind is SpanKind.RECENT]
        last = rest[max(len(rest) - keep_last_frames, 0) :]
        return replace(ledger, spans=(*past[:anchors], *last), pool=())

    def scene_cut(self, ledger: Ledger) -> Ledger:
        """Jump forward in time before the next frame (Infinity-RoPE: RoPE Cut)."""
        frame = ledger.next_frame + self.jump_frames
        return replace(ledger, next_frame=frame, cut_frame=frame, shot=ledger.shot + 1)

    def chunk_keep(self, frames: int, keep: int | None) -> int:
        """`keep`, or all frames if None; raises KVError for a chunk larger than this policy's chunks."""
        if not 1 <= frames <= self.chunk_frames:
            raise KVError(
                f"a chunk of {frames} latent frames, but chunk_frames is {self.chunk_frames}: "
                f"begin 1 to {self.chunk_frames} frames, or make the policy with chunk_frames={frames}"
            )
        if keep is not None and not 0 <= keep <= frames:
            raise KVError(f"keep is {keep}; for a chunk of {frames} latent frames it must be 0 to {frames}")
        return frames if keep is None else keep


def kept_spans(ledger: Ledger) -> list[Span]:
    """The spans that stay for the next chunk, in temporal order; the last chunk becomes recent."""
    return [replace(s, kind=SpanKind.RECENT) if s.kind is SpanKind.CHUNK else s for s in ledger.spans if s.kept]


def leading_frames(past: Sequence[Span], sink_frames: int) -> int:
    """How many leading spans are whole frames among the stream's first `sink_frames`."""
    return next((i for i, s in enumerate(past) if not 0 <= s.frame < sink_frames), len(past))


def assign_cells(
    survivors: Sequence[Span], ledger: Ledger, frames: int, keep: int, region: Region
) -> tuple[list[Span], list[Span], list[Move]]:
    """Assign cells to a chunk so that it and the survivors fill the region's first cells without a gap.

    survivors: spans in that region, in temporal order. New frames take the cells of evicted ones, lowest first; only if
    more cells are free than needed do the outermost survivors move inwards. The first `keep` frames go inside, the
    others at the end, where a later pass can omit them. Returns (survivors, chunk, moves).
    """
    total = len(survivors) + keep
    assert total + frames - keep <= region.cells, (total, frames, keep, region.cells)
    taken = {region.cell(span.start) for span in survivors}
    free = [cell for cell in range(total) if cell not in taken]
    assigned, moves = [], []
    for span in survivors:
        if region.cell(span.start) >= total:
            start, stop = region.slots(free.pop(0))
            moves.append(Move(source=span.start, target=start, length=span.length))
            assigned.append(replace(span, start=start, stop=stop))
        else:
            assigned.append(span)
    cells = free + list(range(total, total + frames - keep))
    chunk = [
        Span(
            start=region.slots(cell)[0],
            stop=region.slots(cell)[1],
            kind=SpanKind.CHUNK,
            frame=ledger.next_frame + i,
            kept=i < keep,
        )
        for i, cell in enumerate(cells)
    ]
    return assigned, chunk, moves


def at_positions(spans: Sequence[Span], positions: Sequence[int]) -> tuple[Span, ...]:
    """The spans with these positions."""
    return tuple(replace(span, position=position) for span, position in zip(spans, positions, strict=True))


def frame_regions(grid: tuple[int, int], frames: int) -> tuple[Region, ...]:
    """A cache of whole frames only."""
    return (frame_region(grid, frames),)
