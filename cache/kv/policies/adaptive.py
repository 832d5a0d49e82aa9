"""Owns the sink that follows the scene: StreamDiffusionV2's adaptive refresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache.kv.plan import KVError, Operation, Refresh, Span
from cache.kv.policies.windows import SinkPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSinkPolicy(SinkPolicy):
    """A sink frame that no longer resembles the newest frame is replaced by it. StreamDiffusionV2 (2511.07399).

    Its sink-token-guided rolling cache, as in its code: when a chunk that evicts something begins, in each layer,
    similarity of a sink frame and the newest finished frame = mean of the cosine similarities of their mean keys and of
    their mean values over tokens (keys unrotated); if the least similar sink frame is below `threshold`, the newest
    replaces it and takes its position. The published code tests while the sink is still filling, and then evicts a
    sink frame at the first ring write; not here. Its reset of positions at frame 50 is not needed: positions count
    slots.
    """

    chunk_frames: int = 1
    window_frames: int = 6
    threshold: float = 0.2

    def validate(self) -> None:
        SinkPolicy.validate(self)
        if self.sink_frames < 1:
            raise KVError(
                f"sink_frames is {self.sink_frames}; an adaptive sink needs at least 1, or use the policy 'window'"
            )
        if not -1 <= self.threshold <= 1:
            raise KVError(f"threshold is {self.threshold}; it is a cosine similarity, -1 to 1")

    @property
    def compares(self) -> bool:
        return True

    def before(self, sinks: Sequence[Span], past: Sequence[Span], evicted: Sequence[Span]) -> tuple[Operation, ...]:
        if not evicted or len(sinks) < self.sink_frames:
            return ()
        return (Refresh(sinks=tuple(sinks), newest=past[-1], threshold=self.threshold),)
