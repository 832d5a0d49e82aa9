"""Owns the policy for multi-shot stories: a context of earlier shots, and the frames of the current one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Plan, Region, Span, SpanKind
from cache.kv.policies.base import KVPolicy, assign_cells, at_positions, by_slot, frame_regions, kept_spans


@dataclass(frozen=True, slots=True, kw_only=True)
class DualPolicy(KVPolicy):
    """A global context of earlier shots and a local window, distinguished by a phase. ShotStream (2603.25746).

    Its dual-cache memory and RoPE discontinuity indicator. The first `context_frames` latent frames after a reset or a
    scene cut are the context: frames chosen from earlier shots, each encoded separately, passed once at timestep 0; at
    positions 0 to context_frames - 1. The shot follows from position context_frames on; its latest `local_frames` stay,
    the chunk included. All temporal angles of a frame are rotated by shot index * theta: context frames carry the index
    of their shot, the current shot one more than the last. theta = 0 is plain rotary attention. A stream's first shot
    has an all-zero context of index 0, as ShotStream's weights expect; with empty_context=False it has none, for
    weights not trained with one.
    """

    context_frames: int = 6
    local_frames: int = 21
    theta: float = 1 / 6
    empty_context: bool = True

    def validate(self) -> None:
        KVPolicy.validate(self)
        if self.context_frames < 0:
            raise KVError(f"context_frames is {self.context_frames}; it must be 0 or more")
        if self.local_frames < self.chunk_frames:
            raise KVError(
                f"local_frames is {self.local_frames}; it counts the chunk, so make it at least {self.chunk_frames}"
            )

    @property
    def regions(self) -> tuple[Region, ...]:
        return frame_regions(self.grid, self.context_frames + self.local_frames)

    @property
    def begin_frames(self) -> int:
        return max(self.context_frames, self.chunk_frames)

    @property
    def phase_step(self) -> float:
        return self.theta

    def anchors(self, past: Sequence[Span]) -> int:
        return min(len(past), self.context_frames)

    def context_of(self, earlier_shots: int) -> int:
        """Number of context frames of a shot after `earlier_shots` others."""
        return self.context_frames if earlier_shots or self.empty_context else 0

    def context_shots(self, earlier_shots: int) -> tuple[int, ...]:
        """The earlier shot of each context frame: an equal share per shot, the remainder to the most recent one.

        0 earlier shots: all zeros. More shots than frames: the most recent shots.
        """
        shots = max(earlier_shots, 1)
        share = self.context_frames // shots
        if not share:
            return tuple(range(shots - self.context_frames, shots))
        counts = [share] * (shots - 1) + [self.context_frames - share * (shots - 1)]
        return tuple(shot for shot, count in enumerate(counts) for _ in range(count))

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        past = kept_spans(ledger)
        required = self.context_of(ledger.shot)
        context = [replace(s, kind=SpanKind.CONTEXT) for s in past[: min(required, self.anchors(past))]]
        missing = required - len(context)
        if missing:
            phases = self._context_phases(ledger, frames, missing, keep, shots)
        else:
            self.chunk_keep(frames, keep)
            phases = shots or (max((s.phase for s in context), default=-1) + 1,) * frames
        if len(phases) != frames:
            raise KVError(f"shots is {shots} for {frames} latent frames: give one index per frame")
        keep = frames if keep is None else keep
        local = past[len(context) :]
        local = local[max(len(local) + frames - self.local_frames, 0) :]
        survivors, chunk, moves = assign_cells(context + local, ledger, frames, keep, self.frame_cells)
        chunk = [replace(span, phase=phase) for span, phase in zip(chunk, phases, strict=True)]
        spans = survivors + chunk
        after = at_positions(spans, by_slot(spans, ledger))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=tuple(moves))

    def _context_phases(
        self, ledger: Ledger, frames: int, missing: int, keep: int | None, shots: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        if not 1 <= frames <= missing or keep not in (None, frames):
            raise KVError(
                f"a chunk of {frames} latent frames (keep={keep}) while {missing} of the {self.context_frames} context "
                "frames of the shot are missing: pass those first, and keep all of them"
            )
        if shots is not None:
            return shots
        done = self.context_frames - missing
        return self.context_shots(ledger.shot)[done : done + frames]

    def scene_cut(self, ledger: Ledger) -> Ledger:
        """Begin a new shot: context and local frames are dropped; the stream passes the next shot's context."""
        return Ledger(next_frame=ledger.next_frame, shot=ledger.shot + 1)

    def position_range(self, ledger: Ledger) -> range:
        return range(self.context_frames + self.local_frames)
