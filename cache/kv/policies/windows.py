"""Owns the policies that keep whole frames and evict by age only: full, sliding window, sink, deep sink; and rebuild,
which keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Operation, Plan, Region, Span, SpanKind
from cache.kv.policies.base import (
    POSITION_RULES,
    KVPolicy,
    assign_cells,
    at_positions,
    frame_regions,
    kept_spans,
    leading_frames,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FullPolicy(KVPolicy):
    """Keeps everything, up to `max_frames`. Self-Forcing (2506.08009) without a window; CausVid (2412.07772).

    Positions are the frames' indices, 0 to max_frames - 1. A further frame is refused, not dropped.
    """

    max_frames: int = 21

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.max_frames < self.chunk_frames:
            raise KVError(
                f"max_frames is {self.max_frames} and a chunk has {self.chunk_frames} frames: raise max_frames"
            )

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.max_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        if len(past) + frames > self.max_frames:
            raise KVError(
                f"the full cache holds {self.max_frames} latent frames and {len(past) + frames} are needed: "
                "reset it, raise max_frames, or use a policy with a window"
            )
        survivors, chunk, moves = assign_cells(past, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, POSITION_RULES["slot"](spans, ledger, self.jump_frames))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=tuple(moves))

    @property
    def keeps_distances(self) -> bool:
        return True

    def position_range(self, ledger: Ledger) -> range:
        return range(self.max_frames + (self.jump_frames if ledger.cut_frame is not None else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkPolicy(KVPolicy):
    """Keeps the first frames forever, and the latest ones. StreamingLLM (2309.17453, 3.2); LongLive (2509.22622).

    window_frames: total attended latent frames: sink, recent frames and the current chunk. sink_frames: the first
    frames of a stream, never evicted. positions: "slot" = order in the cache, 0 to window_frames - 1 (StreamingLLM,
    LongLive's infinite mode, Rolling Forcing's anchor); "absolute" = each frame's own index (Self-Forcing, LongLive 1);
    "realigned" = recent frames keep their index and the sink is placed right before them (Deep Forcing). Eviction
    happens once per chunk. Rolling Forcing (2509.25161): window 21, sink 3, chunks of 15 frames of which 3 are kept.
    """

    window_frames: int = 12
    sink_frames: int = 3
    positions: str = "slot"

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.sink_frames < 0:
            raise KVError(f"sink_frames is {self.sink_frames}; it must be 0 or more")
        if self.window_frames < self.sink_frames + self.chunk_frames:
            raise KVError(
                f"window_frames is {self.window_frames}, smaller than the sink of {self.sink_frames} and a chunk of "
                f"{self.chunk_frames}: it counts both, so make it at least {self.sink_frames + self.chunk_frames}"
            )
        if self.positions not in POSITION_RULES:
            raise KVError(f"positions is {self.positions!r}; choose one of {', '.join(POSITION_RULES)}")

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.window_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        sinks = [replace(s, kind=SpanKind.SINK) for s in past[: self.anchors(past)]]
        recent = past[len(sinks) :]
        room = self.window_frames - len(sinks) - frames
        evicted, recent = recent[: max(len(recent) - room, 0)], recent[max(len(recent) - room, 0) :]
        survivors, chunk, moves = assign_cells(sinks + recent, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, POSITION_RULES[self.positions](spans, ledger, self.jump_frames))
        return Plan(
            ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep),
            now=(*self.before(sinks, past, evicted), *moves),
        )

    @property
    def keeps_distances(self) -> bool:
        """Without a sink, or with absolute positions, unless a subclass changes the past."""
        unchanged = type(self).before is SinkPolicy.before
        return unchanged and (not self.sink_frames or self.positions == "absolute")

    def before(self, sinks: Sequence[Span], past: Sequence[Span], evicted: Sequence[Span]) -> tuple[Operation, ...]:
        """Hook for subclasses: operations on the past before anything moves."""
        return ()

    def position_range(self, ledger: Ledger) -> range:
        if self.positions == "slot":
            return range(self.window_frames + (self.jump_frames if ledger.cut_frame is not None else 0))
        return range(-self.sink_frames, ledger.next_frame + self.chunk_frames)

    def anchors(self, past: Sequence[Span]) -> int:
        return leading_frames(past, self.sink_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPolicy(SinkPolicy):
    """The latest frames only: Self-Forcing's rolling cache (2506.08009, algorithm 2).

    window_frames counts the chunk.
    """

    window_frames: int = 21
    sink_frames: int = 0

    def validate(self) -> None:
        if self.sink_frames:
            raise KVError(f"sink_frames is {self.sink_frames}; a sliding window has none: use the policy 'sink'")
        SinkPolicy.validate(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSinkPolicy(SinkPolicy):
    """A sink of about half the window, re-aligned in time. Deep Forcing (2512.05081, Deep Sink).

    Its sink, 40 to 60 % of the window, is positioned directly before the recent frames: K_sink is rotated, on the
    temporal pairs only, by the gap between them. Keys are stored unrotated here, so this is exact at any age.
    """

    window_frames: int = 21
    sink_frames: int = 10
    positions: str = "realigned"

    def validate(self) -> None:
        SinkPolicy.validate(self)
        if self.positions == "absolute":
            raise KVError("positions is 'absolute'; a deep sink is re-aligned: use 'realigned' or 'slot'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildPolicy(KVPolicy):
    """Keeps nothing between chunks: context is encoded again from clean frames. krea realtime-video, 2025.

    Before every chunk the stream resets the row and passes `context` once at timestep 0; the chunk then begins at
    position min(frames so far, context_frames), so positions are always 0 to context_frames + chunk_frames - 1. This is
    only the rule: the stream owns the clean latents and the codec.
    """

    context_frames: int = 3
    keep_first: bool = False
    """True: frame 0 remains the anchor forever."""

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.context_frames < 1:
            raise KVError(f"context_frames is {self.context_frames}; rebuilding needs at least 1 context frame")

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.context_frames + self.chunk_frames)

    @property
    def begin_frames(self) -> int:
        return max(self.context_frames, self.chunk_frames)

    def context(self, frames: int) -> tuple[int, ...]:
        """Which of `frames` finished latent frames are encoded again, in order: the anchor and the latest ones."""
        if frames <= self.context_frames:
            return tuple(range(frames))
        latest = tuple(range(frames - self.context_frames + 1, frames))
        return (0 if self.keep_first else frames - self.context_frames, *latest)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        limit = self.chunk_frames if ledger.spans else self.begin_frames
        if not 1 <= frames <= limit:
            raise KVError(f"{frames} latent frames at once, but at most {limit} can begin: see chunk_frames")
        past = kept_spans(ledger)
        if len(past) > self.context_frames or len(past) + frames > self.frame_cells.cells:
            raise KVError(
                f"{len(past)} latent frames are cached and a chunk of {frames} begins: this policy rebuilds, so "
                f"reset the row and pass at most {self.context_frames} context frames before every chunk"
            )
        survivors, chunk, moves = assign_cells(past, ledger, frames, frames if keep is None else keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, POSITION_RULES["slot"](spans, ledger, 0))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + frames), now=tuple(moves))

    def position_range(self, ledger: Ledger) -> range:
        return range(self.context_frames + self.chunk_frames)
