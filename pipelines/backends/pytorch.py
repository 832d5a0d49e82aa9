"""Owns the backends that run the networks in PyTorch: eagerly, with compiled blocks, in CUDA graphs, or both.

All compute the same function, up to rounding. Independent of engines. A backend that changes how the networks are
called starts from `plain_runtime` of image or video and replaces parts of it, as these do.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .base import IMAGE_PARTS, Backend, BackendRefusal, refused_without_plans

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pipelines.core.execution import Executor
    from pipelines.image.model import ImageNetworks, ImageRuntime
    from pipelines.video.model import VideoNetworks, VideoRuntime


IMAGE_LANES = 2
"""How many ticks of an image engine run side by side where they are captured: docs/engine.md has the figures."""


@dataclass(frozen=True, kw_only=True)
class PyTorchBackend(Backend):
    """Runs the networks in PyTorch. compiled: compile the networks with torch.compile. captured: capture parts of a
    tick in CUDA graphs; a compiled backend does so on CUDA devices only. compiler: torch.compile's backend.
    """

    compiled: bool = False
    captured: bool = False
    compiler: str = "inductor"

    @property
    def runs_slices(self) -> bool:
        """Eagerly and in CUDA graphs; compilers take networks whole."""
        return not self.compiled

    def rank(self, kind: str, device: torch.device) -> int:
        """Compiling takes minutes on a CPU, and gains little there."""
        return 0 if self.compiled and device.type != "cuda" else self.preference

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """CUDA graphs need a CUDA device, where the compiler needs Triton; image models are compiled to plans."""
        if self.captured and not self.compiled and device.type != "cuda":
            return BackendRefusal(
                because="the model is not on a CUDA device", message=f"The backend {self.name} needs a CUDA device."
            )
        if self.compiled and kind == "image" and (off := refused_without_plans(self.name)):
            return off
        has_triton = importlib.util.find_spec("triton") is not None
        if self.compiled and device.type == "cuda" and not has_triton and self.compiler == "inductor":
            return BackendRefusal(
                because="Triton, which compiling needs, is not installed",
                message=f"The backend {self.name} needs Triton.",
                remedy="Install triton, or use cuda-graph or eager.",
            )
        return None

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Make the plain runtime; if configured, captured, with lanes, compiled, with keys and values of prompts
        cached."""
        from pipelines.image.runtime import plain_runtime, projecting_runtime

        if not (self.captured or self.compiled):
            return replace(plain_runtime(networks), backend=self.name)
        executors, lanes = self._executors(networks.device), IMAGE_LANES if self._captures(networks.device) else 1
        runtime = replace(projecting_runtime(networks), backend=self.name, make_executor=executors, lanes=lanes)
        if not self.compiled:
            return runtime
        from .inductor import InductorRecipe
        from .planned_image import planned_image

        return planned_image(networks, runtime, dict.fromkeys(IMAGE_PARTS, InductorRecipe()))

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Make the plain runtime, compiled or captured if configured."""
        from pipelines.video.runtime import plain_runtime

        runtime = replace(
            plain_runtime(networks), backend=self.name, make_executor=self._executors(networks.transformer.device)
        )
        return self._with_compiled_parts(networks, runtime) if self.compiled else runtime

    def _with_compiled_parts(self, networks: VideoNetworks, runtime: VideoRuntime) -> VideoRuntime:
        from cache.kv.kernels import compiled_kernels
        from pipelines.core.compiling import compiled
        from pipelines.video.codecs.frame_decoder import decode_later
        from pipelines.video.codecs.wan import fused_codec
        from pipelines.video.runtime import frame_decoders
        from pipelines.video.wan.blocks import BlockExecution, compiled_halves
        from pipelines.video.wan.denoiser import WanDenoiser

        execution = BlockExecution(attention=networks.attention, halves=compiled_halves(self.compiler))
        fused = fused_codec(networks.codec)
        decoders = (
            frame_decoders(fused) if fused else frame_decoders(networks.codec, compiled(decode_later, self.compiler))
        )
        return replace(
            runtime,
            denoiser=WanDenoiser(networks.transformer, execution),
            make_frame_decoder=decoders,
            kernels=compiled_kernels(self.compiler),
        )

    def _captures(self, device: torch.device) -> bool:
        return self.captured and device.type == "cuda"

    def _executors(self, device: torch.device) -> Callable[[], Executor]:
        from pipelines.core.execution import EagerExecutor

        if not self._captures(device):
            return EagerExecutor
        from .cuda_graph import GraphExecutor

        return lambda: GraphExecutor(device)
