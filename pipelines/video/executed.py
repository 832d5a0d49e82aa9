"""Owns how an executor runs a denoiser's passes: which passes can share a captured graph.

Independent of the network, chunk schedules, chunks and streams.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from cache.kv.view import KVView
from pipelines.core.execution import Calls

from .model import VideoCondition, VideoDenoiser
from .wan.text_cache import TextView

WARM_PASSES = 6
"""Eager passes before capture: more than a chunk has, so that the phase in which a cache fills is not captured."""


class ExecutedDenoiser:
    """A `VideoDenoiser` whose calls an executor runs.

    A pass is captured once several of the same kind have run, as they do in a cache's steady state; until then, and if
    a view's addresses are not stable, it runs eagerly. Latents, timesteps and the condition's inputs are inputs of the
    graph; text, keys and values are read in place.
    """

    def __init__(self, denoiser: VideoDenoiser, calls: Calls) -> None:
        self._denoiser, self._calls = denoiser, calls

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: VideoCondition, kv: KVView
    ) -> torch.Tensor:
        """See `VideoDenoiser`."""
        names, text = tuple(condition.inputs), condition.text

        def run(latents: torch.Tensor, timesteps: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
            given = VideoCondition(text=text, inputs=dict(zip(names, inputs, strict=True)))
            return self._denoiser(latents, timesteps, given, kv)

        key = _capture_key(names, text, kv)
        return self._calls(key, run, latents, timesteps, *condition.inputs.values(), kept=(text, kv))


def _capture_key(names: tuple[str, ...], text: TextView, kv: KVView) -> Hashable | None:
    """Return the key of a pass's graph; None if the pass reads temporary memory."""
    if kv.recall is not None and kv.recall.refreshes:
        return None
    if text.signature is None or kv.rows != tuple(range(kv.rows[0], kv.rows[-1] + 1)):
        return None
    return names, kv.signature, text.signature
