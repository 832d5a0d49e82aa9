"""A KV policy in one file and one row: the sink, the latest frames, and of what lies between every n-th frame.

    python examples/add_a_kv_policy.py "a red ball on a table"

It reaches further back than a window of the same size. To have it in the program itself (`--kv-policy every-nth`), put
the class into cache/kv/policies/ and the row into POLICIES of cache/kv/policies/__init__.py; nothing else changes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache.kv.plan import KVError, Ledger, Plan, Region, Span, SpanKind
from cache.kv.policies import POLICIES
from cache.kv.policies.base import (
    KVPolicy,
    assign_cells,
    at_positions,
    by_slot,
    frame_regions,
    kept_spans,
    leading_frames,
)
from pipelines.core.controls import Control
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryNthPolicy(KVPolicy):
    """window_frames: all attended latent frames, sink and chunk included. recent_frames: the latest ones, kept whole.

    Older frames are kept where their index is a multiple of `every`; the oldest of them go when the window is full.
    Positions count the kept frames, so they never leave the range that the model was trained on.
    """

    window_frames: int = 12
    sink_frames: int = 3
    recent_frames: int = 3
    every: int = 3

    def validate(self) -> None:
        """Raise KVError, with the remedy."""
        KVPolicy.validate(self)
        if self.every < 1 or min(self.sink_frames, self.recent_frames) < 0:
            raise KVError("every must be at least 1, sink_frames and recent_frames at least 0")
        needed = self.sink_frames + self.recent_frames + self.chunk_frames
        if self.window_frames < needed:
            raise KVError(f"window_frames is {self.window_frames}: make it at least {needed}")

    @property
    def regions(self) -> tuple[Region, ...]:
        """A row of the cache has a cell for each frame of the window."""
        return frame_regions(self.grid, self.window_frames)

    def anchors(self, past: Sequence[Span]) -> int:
        """The sink stays when a new prompt flushes the rest."""
        return leading_frames(past, self.sink_frames)

    def plan(
        self, ledger: Ledger, frames: int, *, keep: int | None = None, shots: tuple[int, ...] | None = None
    ) -> Plan:
        """The rule: who stays when a chunk of `frames` begins, and where everything is then."""
        keep = self.chunk_keep(frames, keep)
        past = kept_spans(ledger)
        sinks = [replace(span, kind=SpanKind.SINK) for span in past[: self.anchors(past)]]
        rest = past[len(sinks) :]
        border = max(len(rest) - self.recent_frames, 0)
        older = [span for span in rest[:border] if span.frame % self.every == 0]
        room = self.window_frames - len(sinks) - len(rest[border:]) - frames
        survivors = [*sinks, *older[max(len(older) - room, 0) :], *rest[border:]]
        survivors, chunk, moves = assign_cells(survivors, ledger, frames, keep, self.frame_cells)
        spans = survivors + chunk
        after = at_positions(spans, by_slot(spans, ledger, self.jump_frames))
        return Plan(ledger=replace(ledger, spans=after, next_frame=ledger.next_frame + keep), now=tuple(moves))

    def position_range(self, ledger: Ledger) -> range:
        """A scene cut puts a gap between old and new frames."""
        return range(self.window_frames + (self.jump_frames if ledger.cut_frame is not None else 0))


def main(prompt: str) -> None:
    """Five chunks of the bundled video model, and which latent frames each one saw."""
    engine = load_engine(
        "mini-video",
        device="cpu",
        policies={**POLICIES, "every-nth": EveryNthPolicy},  # the row
        video={"kv_policy": "every-nth", "window_frames": 10, "sink_frames": 1, "policy_options": {"every": 4}},
        notice=lambda text: None,
    )
    assert isinstance(engine, VideoEngine)
    with engine.open(Control.of({"prompt": prompt})) as stream:
        for number in range(5):
            stream.generate(stream.info.frames_per_chunk)
            frames = stream.flush()
            kept = [span.frame for span in engine.core.cache.ledger(0).spans]  # of the first stream's cache row
            sys.stdout.write(f"chunk {number}: {len(frames)} frames, saw latent frames {kept}\n")
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
