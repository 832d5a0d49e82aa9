"""Owns the plain runtime of an image model: its networks run eagerly in PyTorch, without CUDA graphs.

Independent of backends, which build on it: pipelines/backends/.
"""

from __future__ import annotations

from pipelines.core.execution import EagerExecutor

from .loading.networks import CODECS, UNetDenoiser
from .model import ImageNetworks, ImageRuntime


def plain_runtime(networks: ImageNetworks) -> ImageRuntime:
    """Return a runtime that runs `networks` eagerly. Raises ModelLayoutError for an unknown prediction type."""
    make_codec = CODECS[networks.autoencoder_class]
    return ImageRuntime(
        backend="eager",
        denoiser=UNetDenoiser(
            networks.unet,
            schedule=networks.schedule,
            prediction_type=networks.prediction_type,
            device=networks.device,
            dtype=networks.dtype,
            guidance_embedding=networks.guidance_embedding,
        ),
        codec=make_codec(networks.autoencoder, dtype=networks.codec_dtype, device=networks.device),
        make_executor=EagerExecutor,
    )
