"""Owns the fp8 backends for video: the compiled backend with products, or products and attention, in e4m3.

Independent of engines. What is in e4m3, and with which scales: pipelines/video/wan/fp8_blocks.py. LoRAs are merged
before the weights are quantised, once per model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .base import BackendRefusal
from .pytorch import PyTorchBackend

if TYPE_CHECKING:
    import torch

    from pipelines.video.model import VideoNetworks, VideoRuntime
    from pipelines.video.wan.blocks import BlockHalves
    from pipelines.video.wan.fp8_blocks import Fp8Recipe

_PRODUCTS, _ATTENTION = (8, 9), (9, 0)
"""The compute capabilities from which a CUDA device multiplies e4m3, and cuDNN attends to it."""


@dataclass(frozen=True, kw_only=True)
class Fp8Backend(PyTorchBackend):
    """attention: whether self-attention is in fp8 too, which needs cuDNN's frontend."""

    kinds: tuple[str, ...] = ("video",)
    compiled: bool = True
    captured: bool = True
    attention: bool = False

    def refusal(self, kind: str, device: torch.device) -> BackendRefusal | None:
        """It needs a CUDA device that computes in e4m3, Triton and, for attention, cuDNN's frontend."""
        if device.type != "cuda":
            return BackendRefusal(
                because="the model is not on a CUDA device", message=f"The backend {self.name} needs a CUDA device."
            )
        refused = super().refusal(kind, device)
        if refused is not None:
            return refused
        import torch

        from pipelines.video.wan.fp8_attention import PACKAGE, missing_frontend

        needed = _ATTENTION if self.attention else _PRODUCTS
        found = torch.cuda.get_device_capability(device)
        if found < needed:
            because = (
                f"{self.name} needs compute capability {needed[0]}.{needed[1]}, this device has {found[0]}.{found[1]}"
            )
            return BackendRefusal(because=because, message=f"The backend {because}.")
        missing = missing_frontend() if self.attention else ""
        if missing:
            return BackendRefusal(
                because=missing,
                message=f"The backend {self.name} cannot run: {missing}.",
                remedy=f"pip install {PACKAGE}, or use fp8-products.",
            )
        return None

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Make the compiled and captured runtime, with blocks in fp8. Raises ModelError for a dtype but bfloat16."""
        from pipelines.video.wan.blocks import compiled_halves
        from pipelines.video.wan.fp8_attention import CudnnFp8Attention
        from pipelines.video.wan.fp8_blocks import Fp8Recipe
        from pipelines.video.wan.fp8_triton import TRITON_FP8_KERNELS

        attention = CudnnFp8Attention(networks.transformer.device, TRITON_FP8_KERNELS.join) if self.attention else None
        recipe = Fp8Recipe(attention=attention, kernels=TRITON_FP8_KERNELS)
        return with_fp8_blocks(networks, super().video(networks), recipe, compiled_halves(self.compiler))


def with_fp8_blocks(
    networks: VideoNetworks, runtime: VideoRuntime, recipe: Fp8Recipe, halves: BlockHalves
) -> VideoRuntime:
    """Return the runtime with a denoiser in fp8. halves: of blocks whose products are not.

    Raises ModelError unless the transformer is in bfloat16.
    """
    import torch

    from pipelines.core.errors import ModelError
    from pipelines.video.wan.blocks import BlockExecution
    from pipelines.video.wan.denoiser import WanDenoiser
    from pipelines.video.wan.fp8_blocks import fp8_blocks

    transformer = networks.transformer
    if transformer.dtype != torch.bfloat16:
        name = str(transformer.dtype).removeprefix("torch.")
        raise ModelError(f"fp8 is made from weights in bfloat16, not in {name}.", "Use --dtype bfloat16.")
    blocks = fp8_blocks(transformer, recipe)
    execution = BlockExecution(attention=networks.attention, halves=halves, blocks=blocks)
    storage = "" if recipe.attention is None else "fp8"
    return replace(runtime, denoiser=WanDenoiser(transformer, execution), storage=storage)
