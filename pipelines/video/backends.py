"""Owns how one pass of the denoiser is executed: as written, with its blocks compiled, in a CUDA graph, or both.

One table says which; `choose_backend` picks from it by name or by "auto". The result is the same function in each case,
up to rounding. Knows the transformer and its views; no schedule, chunk, stream or codec.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from cache.kv.kernels import PLAIN_KERNELS, KVKernels, compiled_kernels
from cache.kv.view import KVView
from pipelines.core.errors import ModelError

from .captured import CapturedCalls
from .compiling import compiled
from .wan.blocks import AS_WRITTEN, BlockHalves, WanBlock
from .wan.text_cache import TextView
from .wan.transformer import CausalWanTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendKind:
    """compiled: blocks and rotation by torch.compile; captured: whole passes in CUDA graphs."""

    name: str
    compiled: bool
    captured: bool


VIDEO_BACKENDS: Mapping[str, BackendKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            BackendKind(name="eager", compiled=False, captured=False),
            BackendKind(name="compiled", compiled=True, captured=False),
            BackendKind(name="cuda-graph", compiled=False, captured=True),
            BackendKind(name="compiled-cuda-graph", compiled=True, captured=True),
        )
    }
)
"""Every backend by the name a user gives it."""


class VideoBackend:
    """Executes passes of one transformer, whose `halves` it sets. Made by `choose_backend`.

    name: as in the table. reason: why it was taken, for the user. kernels: what a KVCache for these passes takes.
    """

    def __init__(self, kind: BackendKind, transformer: CausalWanTransformer, *, reason: str, compiler: str) -> None:
        self.name, self.reason = kind.name, reason
        self._transformer = transformer
        self.kernels: KVKernels = compiled_kernels(compiler) if kind.compiled else PLAIN_KERNELS
        transformer.halves = compiled_halves(compiler) if kind.compiled else AS_WRITTEN
        self._calls = CapturedCalls(transformer.device) if kind.captured else None

    @property
    def graphs(self) -> int:
        """How many CUDA graphs were captured."""
        return 0 if self._calls is None else self._calls.graphs

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        text: TextView,
        kv: KVView | None = None,
        actions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity [B, out_channels, F, H, W], valid until the next pass; arguments as the transformer takes them.

        A pass is captured when several of the same kind have run, which the steady state of a cache brings; until
        then, and where a view's addresses do not last, it runs without a graph.
        """
        key = _capture_key(text, kv)
        if self._calls is None or key is None:
            velocity: torch.Tensor = self._transformer(latents, timesteps, text, kv, actions)
            return velocity

        def run(latents: torch.Tensor, timesteps: torch.Tensor, *actions: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self._transformer(latents, timesteps, text, kv, *actions)
            return out

        inputs = (latents, timesteps) if actions is None else (latents, timesteps, actions)
        return self._calls(key, run, *inputs, kept=(text, kv))

    def invalidate(self) -> None:
        """The transformer's weights or the cache's memory stand elsewhere now: drop the graphs."""
        if self._calls is not None:
            self._calls.invalidate()


def choose_backend(requested: str, transformer: CausalWanTransformer, *, compiler: str = "inductor") -> VideoBackend:
    """'auto' takes compiled-cuda-graph on CUDA (cuda-graph where Triton is missing) and eager on the CPU.

    compiler: torch.compile's backend. Raises ModelError for an unknown name and for one that cannot run here.
    """
    on_cuda = transformer.device.type == "cuda"
    has_triton = importlib.util.find_spec("triton") is not None
    reason = f"{requested} as asked"
    if requested == "auto":
        if not on_cuda:
            requested, reason = "eager", "eager: the model is not on a CUDA device"
        elif not has_triton:
            requested, reason = "cuda-graph", "cuda-graph: Triton, which compiling needs, is not installed"
        else:
            requested, reason = "compiled-cuda-graph", "compiled-cuda-graph: the fastest measured"
    kind = VIDEO_BACKENDS.get(requested)
    if kind is None:
        raise ModelError(f"There is no backend named {requested!r}.", f"Use auto, {', '.join(VIDEO_BACKENDS)}.")
    if kind.captured and not on_cuda:
        raise ModelError(f"The backend {requested} needs a CUDA device.", "Use auto, eager or compiled.")
    if kind.compiled and on_cuda and not has_triton and compiler == "inductor":
        raise ModelError(f"The backend {requested} needs Triton.", "Install triton, or use cuda-graph or eager.")
    return VideoBackend(kind, transformer, reason=reason, compiler=compiler)


def compiled_halves(compiler: str = "inductor") -> BlockHalves:
    """Both halves of a block, compiled at first use, once for each shape of the batch and all blocks."""
    return BlockHalves(before=compiled(WanBlock.before, compiler), after=compiled(WanBlock.after, compiler))


def _capture_key(text: TextView, kv: KVView | None) -> Hashable:
    """None: the pass reads memory that does not outlast it."""
    if kv is None or text.signature is None or kv.rows != tuple(range(kv.rows[0], kv.rows[-1] + 1)):
        return None
    return kv.signature, text.signature
