"""Owns the plainest runtime of an image model: its networks as they are, in PyTorch, without graphs.

Backends build on it: pipelines/backends/.
"""

from __future__ import annotations

from pipelines.core.execution import EagerExecutor

from .loading.networks import CODECS, UNetDenoiser
from .model import ImageNetworks, ImageRuntime


def plain_runtime(networks: ImageNetworks) -> ImageRuntime:
    """The networks as they are. Raises ModelLayoutError for a prediction type that is unknown."""
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
