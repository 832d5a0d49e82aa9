"""Owns the words in which policies speak: spans of slots, what stands in a row (the ledger), operations, and the plan.

Host integers only, no tensors. Ranges are half-open and in slots; a slot holds one token's keys and values of every
layer. Positions are in latent frames. Order in a ledger is order in time; slots may stand in any order, because
attention does not care for the order of its keys: a new frame simply takes the place of an evicted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class KVError(ValueError):
    """A cache or a policy was asked for something it cannot do. The message holds the value and the remedy."""


class SpanKind(StrEnum):
    """What a span holds, as its policy sees it."""

    SINK = "sink"
    RECENT = "recent"
    CONTEXT = "context"
    """Frames of earlier shots."""
    CHUNK = "chunk"
    """The chunk that is being denoised: its passes write here."""
    SELECTED = "selected"
    """Tokens of several frames, chosen on the device, different in every layer (and, with heavy hitters, head)."""
    MID = "mid"
    """A pooled block of frames that is attended."""
    POOL = "pool"
    """A pooled block of frames that waits to be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One cell of slots: a latent frame, a frame's worth of selected tokens, or a pooled block."""

    start: int
    stop: int
    kind: SpanKind
    frame: int
    """Index, since the row's reset, of the (first) latent frame it holds; -1 when only the device knows."""
    position: int = 0
    """Where its first frame stands in time now."""
    frames: int = 1
    """Latent frames it stands for."""
    phase: int = 0
    """Shot index: this many times the policy's `phase_step` is added to its temporal angles."""
    kept: bool = True
    """False: a frame that the next chunk's beginning drops."""

    @property
    def length(self) -> int:
        """Slots."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What stands in a row. Immutable: a row's state on the host is one reference."""

    spans: tuple[Span, ...] = ()
    """What is attended, in order of time, the chunk last."""
    pool: tuple[Span, ...] = ()
    """What is stored and not attended, in order of time."""
    next_frame: int = 0
    """Index of the next latent frame."""
    cut_frame: int | None = None
    """Index of the first latent frame after the latest scene cut."""
    shot: int = 0
    """Scene cuts so far."""

    @property
    def length(self) -> int:
        """Attended tokens."""
        return sum(span.length for span in self.spans)

    @property
    def attended(self) -> tuple[int, int]:
        """The slots that hold the attended tokens: one half-open range."""
        return attended_range(self.spans)

    @property
    def chunk(self) -> tuple[Span, ...]:
        """The spans of the chunk that is being denoised."""
        return tuple(span for span in self.spans if span.kind is SpanKind.CHUNK)

    @property
    def past(self) -> tuple[Span, ...]:
        """The spans that were there before the chunk."""
        return tuple(span for span in self.spans if span.kind is not SpanKind.CHUNK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Copy `length` slots from `source` to `target` (they do not overlap)."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """Where the least similar sink frame is below the threshold, the newest frame replaces it, per layer."""

    sinks: tuple[Span, ...]
    newest: Span
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTokens:
    """The best tokens of the candidates, in order of time, go to the targets; positions are as they are scored."""

    candidates: tuple[Span, ...]
    targets: tuple[Span, ...]
    accumulated: bool = False
    """True: by accumulated attention, each head for itself. False: by the products with the chunk's queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectBlocks:
    """The best pooled blocks, in order of time, go to the targets. Scores: products with the chunk's queries."""

    candidates: tuple[Span, ...]
    targets: tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFrames:
    """The mean keys and values over boxes of the source frames go to the target."""

    sources: tuple[Span, ...]
    target: Span


Operation = Move | Refresh | SelectTokens | SelectBlocks | PoolFrames


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a chunk's beginning does to a row."""

    ledger: Ledger
    """What stands afterwards, the chunk included."""
    now: tuple[Operation, ...] = ()
    """Done at once, for all layers, in this order."""
    first_pass: tuple[Operation, ...] = ()
    """Done in each layer of the chunk's first pass, when its queries are known, before that layer attends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """`cells` equal cells of slots from `start`. In a cell, slot i is at (t, y, x)[i] relative to its span."""

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
        """The half-open range of a cell."""
        assert 0 <= cell < self.cells, (cell, self)
        return self.start + cell * self.tokens, self.start + (cell + 1) * self.tokens

    def cell(self, slot: int) -> int:
        """The cell that begins at a slot."""
        cell, rest = divmod(slot - self.start, self.tokens)
        assert rest == 0, (slot, self)
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
    """The half-open range of slots from the first to the last; (0, 0) for none."""
    bounds = [(span.start, span.stop) for span in spans]
    return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else (0, 0)


def gaps(spans: Sequence[Span]) -> bool:
    """Whether spans overlap or leave a slot free between the first and the last."""
    start, stop = attended_range(spans)
    ordered = sorted(spans, key=lambda span: span.start)
    disjoint = all(a.stop <= b.start for a, b in pairwise(ordered))
    return not disjoint or sum(span.length for span in spans) != stop - start
