"""Owns how many streams in lockstep share one row of a KV cache: as additional heads.

Streams that begin together with chunks of one length always have equal plans, so the host plans and moves once for all
of them: for 128 streams, a hundredth of the kernel launches. Valid for policies that treat every head separately; those
that select by all heads together get a row per stream. Independent of latents and prompts.
"""

from __future__ import annotations

import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import KVPolicy
from cache.kv.policies.adaptive import AdaptiveSinkPolicy
from cache.kv.view import KVView
from pipelines.video.model import VideoRuntime
from pipelines.video.options import chosen_storage
from pipelines.video.wan.transformer import CausalWanTransformer


def mixes_heads(policy: KVPolicy) -> bool:
    """Whether what is kept in one head depends on the others."""
    together = policy.scores_queries and policy.selects >= 0
    return together or isinstance(policy, AdaptiveSinkPolicy)


class FoldedView:
    """A KVView of a row with `streams` times the model's heads, for a batch of `streams` streams."""

    def __init__(self, view: KVView, streams: int) -> None:
        self._view, self._streams = view, streams
        self.rows, self.observes, self.signature = view.rows, view.observes, view.signature
        self.recall = view.recall

    @property
    def query_rotation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, N, 1, D/2], the same for all streams."""
        return self._view.query_rotation

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        """Rotated queries [streams, N, heads, D]."""
        self._view.observe(layer, self._fold(queries))

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[streams, N, heads, D] twice -> [streams, M, heads, D] twice."""
        attended = self._view.exchange(layer, self._fold(keys), self._fold(values))
        return self._unfold(attended[0]), self._unfold(attended[1])

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        """[S, N, H, D] -> [1, N, S H, D]."""
        return x.transpose(0, 1).flatten(1, 2)[None]

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        """[1, M, S H, D] -> [S, M, H, D], a view."""
        return x[0].reshape(x.shape[1], self._streams, -1, x.shape[3]).transpose(0, 1)


class StreamsInStep:
    """The cache of `streams` streams that begin and end their chunks together.

    folded: as additional heads of one row; None: if the policy allows it.
    """

    def __init__(
        self,
        transformer: CausalWanTransformer,
        policy: KVPolicy,
        runtime: VideoRuntime,
        *,
        streams: int,
        storage: str = "auto",
        folded: bool | None = None,
    ) -> None:
        self.folded = not mixes_heads(policy) if folded is None else folded
        self.policy, self._streams = policy, streams
        self._rows = list(range(1 if self.folded else streams))
        shape = KVShape(
            layers=transformer.layers,
            heads=transformer.heads * (streams if self.folded else 1),
            head_dim=transformer.head_dim,
            grid=policy.grid,
            cache_rows=len(self._rows),
            dtype=transformer.dtype,
            device=transformer.device,
        )
        chosen = chosen_storage(storage, runtime.storage, policy, transformer.device)
        self.cache = KVCache(shape, policy, rotary=transformer.rotary, storage=chosen, kernels=runtime.kernels)

    @property
    def bytes(self) -> int:
        """All memory of the cache."""
        return self.cache.bytes

    def begin(self, frames: int) -> None:
        """Begin a chunk of `frames` latent frames, or a context passed like one, in every stream."""
        for row in self._rows:
            self.cache.begin(row, frames)

    def reset(self) -> None:
        """Empty the cache."""
        for row in self._rows:
            self.cache.reset(row)

    def view(self) -> KVView | FoldedView:
        """The view for one pass of all streams."""
        view = self.cache.view(self._rows)
        return FoldedView(view, self._streams) if self.folded else view
