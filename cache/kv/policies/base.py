"""Owns what all key/value policies share: their configuration's frame, where spans stand in time, which slots they
take.

Host integers only. A policy is a frozen dataclass: its configuration and its rule are one object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Move, Plan, Region, Span, SpanKind, frame_region

PositionRule = Callable[[Sequence[Span], Ledger, int], list[int]]
"""(spans in order of time, the ledger before, jump) -> where each stands, in latent frames."""


def by_slot(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Positions count what stands in the cache: 0, 1, 2, ... StreamingLLM (2309.17453, 3.2); LongLive's infinite mode.

    After a scene cut, what came after it stands `jump` frames further on, as long as something from before is kept.
    """
    positions, reached = [], 0
    cut = -1 if ledger.cut_frame is None else ledger.cut_frame
    gap = jump if any(span.frame < cut for span in spans) else 0
    for span in spans:
        positions.append(reached + (gap if span.frame >= cut else 0))
        reached += span.frames
    return positions


def absolute(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Positions are the frames' own indices, sinks included: Self-Forcing (2506.08009), LongLive 1."""
    return [span.frame for span in spans]


def realigned(spans: Sequence[Span], ledger: Ledger, jump: int = 0) -> list[int]:
    """Recent frames keep their own indices and the sink moves up to them: Deep Forcing (2512.05081), Deep Sink."""
    sinks = [span for span in spans if span.kind is SpanKind.SINK]
    rest = [span.frame for span in spans if span.kind is not SpanKind.SINK]
    first = rest[0] if rest else ledger.next_frame
    return [first - len(sinks) + i for i in range(len(sinks))] + rest


POSITION_RULES: Mapping[str, PositionRule] = {"slot": by_slot, "absolute": absolute, "realigned": realigned}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPolicy(ABC):
    """The rule of one cache. grid: (rows, columns) of tokens in a latent frame; chunk_frames: the largest chunk.

    Raises KVError when its numbers cannot work, with the remedy.
    """

    grid: tuple[int, int]
    chunk_frames: int = 3
    jump_frames: int = 16
    """How far a scene cut puts the new frames from the old ones."""

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise KVError for numbers that cannot work. Subclasses add theirs."""
        if min(self.grid) < 1:
            raise KVError(f"grid is {self.grid}; it is (rows, columns) of tokens in a latent frame, each at least 1")
        if self.chunk_frames < 1:
            raise KVError(f"chunk_frames is {self.chunk_frames}; a chunk has at least 1 latent frame")
        if self.jump_frames < 0:
            raise KVError(f"jump_frames is {self.jump_frames}; a scene cut goes forward: 0 or more")

    @property
    @abstractmethod
    def regions(self) -> tuple[Region, ...]:
        """All slots of a row: adjacent regions from slot 0; the last may be a pool that is not attended."""

    @abstractmethod
    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        """What a chunk of `frames` latent frames does to a row in which `ledger` stands.

        keep: how many of its first frames stay when the next chunk begins (default all). shots: the frames' shot
        indices, for policies that have phases. Raises KVError when the chunk cannot be held.
        """

    @abstractmethod
    def position_range(self, ledger: Ledger) -> range:
        """The positions that this policy may give to what stands in the ledger."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def capacity_tokens(self) -> int:
        """Slots of a row."""
        return self.regions[-1].stop

    @property
    def begin_frames(self) -> int:
        """The most latent frames that may begin together: a chunk, or a context that comes like one."""
        return self.chunk_frames

    @property
    def attended_tokens(self) -> int:
        """Slots, from the first, that can be attended: all but a pool."""
        return self.capacity_tokens

    @property
    def pooling(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of tokens that are averaged into one where blocks are pooled."""
        return (1, 1, 1)

    @property
    def frame_cells(self) -> Region:
        """The region in which whole frames stand."""
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
    def selects(self) -> int:
        """Heads that choose tokens of their own: 0 = no token is chosen alone, 1 = all heads together, -1 = each."""
        return 0

    @property
    def query_stride(self) -> int:
        """Every how many-th query is looked at where queries are scored."""
        return 1

    @property
    def phase_step(self) -> float:
        """Radians by which each shot index turns all temporal angles."""
        return 0.0

    def anchors(self, past: Sequence[Span]) -> int:
        """How many of the first spans are never evicted: a sink, a context."""
        return 0

    def flush(self, ledger: Ledger, keep_last_frames: int = 1) -> Ledger:
        """What stays when the prompt changes: the sink and the last frames (Infinity-RoPE, 2511.20649: KV Flush)."""
        past = standing(ledger)
        anchors = self.anchors(past)
        rest = [span for span in past[anchors:] if span.kind is SpanKind.RECENT]
        last = rest[max(len(rest) - keep_last_frames, 0) :]
        return replace(ledger, spans=(*past[:anchors], *last), pool=())

    def scene_cut(self, ledger: Ledger) -> Ledger:
        """A jump in time ahead of the next frame (Infinity-RoPE: RoPE Cut)."""
        frame = ledger.next_frame + self.jump_frames
        return replace(ledger, next_frame=frame, cut_frame=frame, shot=ledger.shot + 1)

    def chunk_keep(self, frames: int, keep: int | None) -> int:
        """`keep`, or all of the frames; raises KVError for a chunk that this policy was not made for."""
        if not 1 <= frames <= self.chunk_frames:
            raise KVError(
                f"a chunk of {frames} latent frames, where chunk_frames is {self.chunk_frames}: "
                f"begin 1 to {self.chunk_frames} frames, or make the policy with chunk_frames={frames}"
            )
        if keep is not None and not 0 <= keep <= frames:
            raise KVError(f"keep is {keep}; of a chunk of {frames} latent frames 0 to {frames} can stay")
        return frames if keep is None else keep


def standing(ledger: Ledger) -> list[Span]:
    """What the next chunk finds: the kept spans in order of time; the last chunk is recent now."""
    return [replace(s, kind=SpanKind.RECENT) if s.kind is SpanKind.CHUNK else s for s in ledger.spans if s.kept]


def leading_frames(past: Sequence[Span], sink_frames: int) -> int:
    """How many spans, from the first, are whole frames of the first `sink_frames` of the stream."""
    return next((i for i, s in enumerate(past) if not 0 <= s.frame < sink_frames), len(past))


def settle(
    survivors: Sequence[Span], ledger: Ledger, frames: int, keep: int, region: Region
) -> tuple[list[Span], list[Span], list[Move]]:
    """Cells for a chunk among the survivors, so that all of them fill the region's first cells without a gap.

    survivors: spans in that region, in order of time. New frames take the cells of evicted ones, lowest first; only
    when fewer frames remain than cells are open, the survivors furthest out move in. The `keep` first frames stand
    inside, the others at the end, where a later pass can leave them away. Returns (survivors, chunk, moves).
    """
    total = len(survivors) + keep
    assert total + frames - keep <= region.cells, (total, frames, keep, region.cells)
    taken = {region.cell(span.start) for span in survivors}
    free = [cell for cell in range(total) if cell not in taken]
    settled, moves = [], []
    for span in survivors:
        if region.cell(span.start) >= total:
            start, stop = region.slots(free.pop(0))
            moves.append(Move(source=span.start, target=start, length=span.length))
            settled.append(replace(span, start=start, stop=stop))
        else:
            settled.append(span)
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
    return settled, chunk, moves


def placed(spans: Sequence[Span], positions: Sequence[int]) -> tuple[Span, ...]:
    """The spans at these positions."""
    return tuple(replace(span, position=position) for span, position in zip(spans, positions, strict=True))


def frames_of(grid: tuple[int, int], frames: int) -> tuple[Region, ...]:
    """A cache of whole frames only."""
    return (frame_region(grid, frames),)
