"""Owns passes of a denoiser as an executor runs them: what a captured pass may be replayed for.

Does not depend on a network, a schedule, a chunk or a stream.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch

from cache.kv.view import KVView
from pipelines.core.execution import Calls

from .model import VideoCondition, VideoDenoiser
from .wan.text_cache import TextView

WARM_PASSES = 6
"""More than one chunk has passes, so that the phase in which a cache fills is not captured."""


class ExecutedDenoiser:
    """A `VideoDenoiser` whose calls an executor runs.

    A pass is captured when several of the same kind have run, which the steady state of a cache brings; until then,
    and where a view's addresses do not last, it runs without a graph. Latents, timesteps and the condition's inputs are
    inputs of a graph; text and keys and values are read where they are.
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
    """None: the pass reads memory that does not outlast it."""
    if text.signature is None or kv.rows != tuple(range(kv.rows[0], kv.rows[-1] + 1)):
        return None
    return names, kv.signature, text.signature
