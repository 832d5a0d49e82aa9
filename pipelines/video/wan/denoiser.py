"""Owns the adapter that makes the causal transformer a `VideoDenoiser`.

Independent of schedules, chunks, streams and executors.
"""

from __future__ import annotations

import torch

from cache.kv.view import KVView
from pipelines.video.model import VideoCondition

from .blocks import PLAIN_EXECUTION, BlockExecution
from .transformer import CausalWanTransformer


class WanDenoiser:
    """A CausalWanTransformer as a `VideoDenoiser`; the condition's inputs are keywords of its forward.

    execution: how its blocks compute in these passes.
    """

    def __init__(self, transformer: CausalWanTransformer, execution: BlockExecution = PLAIN_EXECUTION) -> None:
        self._transformer, self._execution = transformer, execution

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        """See `VideoDenoiser`."""
        velocity: torch.Tensor = self._transformer(
            latents, timesteps, condition.text, kv, execution=self._execution, recall=kv.recall, **condition.inputs
        )
        return velocity
