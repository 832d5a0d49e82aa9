"""Owns the vocabulary of policies: spans of slots, the ledger of a row, operations, and the plan.

Host integers only, no tensors. Ranges are half-open and in slots; a slot holds one token's keys and values of every
layer. Positions are in latent frames. A ledger is in temporal order; its slots may be in any order, because attention
does not depend on the order of its keys: a new frame simply takes the slots of an evicted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class KVError(ValueError):
    """A cache or a policy cannot do what was requested. The message gives the value and the remedy."""


class SpanKind(StrEnum):
    """What a span holds, to its policy."""

    SINK = "sink"
    RECENT = "recent"
    CONTEXT = "context"
    """Frames of earlier shots."""
    CHUNK = "chunk"
    """The chunk being denoised: its passes write here."""
    SELECTED = "selected"
    """Tokens of several frames, chosen on the device per layer (and, with heavy hitters, per head)."""
    MID = "mid"
    """A pooled block of frames that is attended."""
    POOL = "pool"
    """A pooled block of frames that may be selected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A cell of slots: a latent frame, a frame's worth of selected tokens, or a pooled block."""

    start: int
    stop: int
    kind: SpanKind
    frame: int
    """Index, since the row's reset, of its (first) latent frame; -1 if decided on the device."""
    position: int = 0
    """Current temporal position of its first frame."""
    frames: int = 1
    """Latent frames it represents."""
    phase: int = 0
    """Shot index: this many times the policy's `phase_step` is added to its temporal angles."""
    kept: bool = True
    """False: dropped when the next chunk begins."""

    @property
    def length(self) -> int:
        """Number of slots."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The contents of a row. Immutable: a row's state on the host is one reference."""

    spans: tuple[Span, ...] = ()
    """Attended spans in temporal order, the chunk last."""
    pool: tuple[Span, ...] = ()
    """Spans that are stored but not attended, in temporal order."""
    next_frame: int = 0
    """Index of the next latent frame."""
    cut_frame: int | None = None
    """Index of the first latent frame after the latest scene cut."""
    shot: int = 0
    """Scene cuts so far."""

    @property
    def length(self) -> int:
        """Number of attended tokens."""
        return sum(span.length for span in self.spans)

    @property
    def attended(self) -> tuple[int, int]:
        """The attended slots: one half-open range."""
        return attended_range(self.spans)

    @property
    def chunk(self) -> tuple[Span, ...]:
        """The spans of the chunk being denoised."""
        return tuple(span for span in self.spans if span.kind is SpanKind.CHUNK)

    @property
    def past(self) -> tuple[Span, ...]:
        """The attended spans before the chunk."""
        return tuple(span for span in self.spans if span.kind is not SpanKind.CHUNK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Copy `length` slots from `source` to `target` (they do not overlap)."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """Per layer, replace the sink frame least similar to the newest by it, if that similarity is below threshold."""

    sinks: tuple[Span, ...]
    newest: Span
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Scores all heads together by the products with the chunk's queries: for the first pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accumulated:
    """Scores each head by the attention that its tokens have received, see `KVPolicy.accumulates`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceRedundancy:
    """Scores each head by the attention of the chunk's queries, less what is redundant: for the first pass."""

    importance: float
    """Weight of the importance, 0 to 1; the redundancy has the rest."""
    pool_tokens: int
    """Width of the maximum over neighbouring keys, odd."""


Scoring = Products | Accumulated | ImportanceRedundancy


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTokens:
    """Copy the candidates' best tokens to the targets, in temporal order: as many as the targets hold.

    Candidates' positions: those for scoring. scoring: how the device decides which tokens are the best; see
    cache.kv.scores.
    """

    candidates: tuple[Span, ...]
    targets: tuple[Span, ...]
    scoring: Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectBlocks:
    """Copy the best pooled blocks to the targets, in temporal order. Scored by products with the chunk's queries."""

    candidates: tuple[Span, ...]
    targets: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFrames:
    """Write the mean keys and values over boxes of the source frames to the target."""

    sources: tuple[Span, ...]
    target: Span


Operation = Move | Refresh | SelectTokens | SelectBlocks | PoolFrames


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What beginning a chunk does to a row."""

    ledger: Ledger
    """The ledger afterwards, the chunk included."""
    now: tuple[Operation, ...] = ()
    """Run at once, for all layers, in this order."""
    first_pass: tuple[Operation, ...] = ()
    """Run in each layer of the chunk's first pass, once its queries are known, before that layer attends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """`cells` equal cells of slots from `start`. Slot i of a cell is at (t, y, x)[i] relative to its span."""

    start: int
    cells: int
    t: tuple[float, ...]
    y: tuple[float, ...]
    x: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """Slots of one cell."""
        return len(self.t)

    @property
    def stop(self) -> int:
        """The first slot after the region."""
        return self.start + self.cells * self.tokens

    def slots(self, cell: int) -> tuple[int, int]:
        """A cell's half-open range of slots."""
        assert 0 <= cell < self.cells, (cell, self)
        return self.start + cell * self.tokens, self.start + (cell + 1) * self.tokens

    def cell(self, slot: int) -> int:
        """The cell that begins at a slot."""
        cell, remainder = divmod(slot - self.start, self.tokens)
        assert remainder == 0, (slot, self)
        assert 0 <= cell < self.cells, (slot, self)
        return cell


def frame_region(grid: tuple[int, int], frames: int, *, start: int = 0) -> Region:
    """A region of whole latent frames of grid = (rows, columns) tokens."""
    rows, columns = grid
    tokens = rows * columns
    return Region(
        start=start,
        cells=frames,
        t=(0.0,) * tokens,
        y=tuple(float(i // columns) for i in range(tokens)),
        x=tuple(float(i % columns) for i in range(tokens)),
    )


def attended_range(spans: Iterable[Span]) -> tuple[int, int]:
    """The half-open range of slots that the spans cover; (0, 0) for none."""
    bounds = [(span.start, span.stop) for span in spans]
    return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else (0, 0)


def gaps(spans: Sequence[Span]) -> bool:
    """Whether spans overlap or leave a free slot between the first and the last."""
    start, stop = attended_range(spans)
    ordered = sorted(spans, key=lambda span: span.start)
    disjoint = all(a.stop <= b.start for a, b in pairwise(ordered))
    return not disjoint or sum(span.length for span in spans) != stop - start
