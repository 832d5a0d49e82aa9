"""Owns the plain runtime of an image model: its networks run eagerly in PyTorch, without CUDA graphs.

Independent of backends, which build on it: pipelines/backends/.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from pipelines.core.execution import EagerExecutor

from .loading.networks import CODECS, UNetDenoiser
from .model import Denoiser, ImageNetworks, ImageRuntime
from .reuse.networks import window_networks

logger = logging.getLogger(__name__)


def plain_runtime(networks: ImageNetworks) -> ImageRuntime:
    """Return a runtime that runs `networks` eagerly. Raises ModelLayoutError for an unknown prediction type."""
    make_codec = CODECS[networks.autoencoder_class]
    denoiser = _denoiser(networks, networks.unet)
    return ImageRuntime(
        backend="eager",
        denoiser=denoiser,
        codec=make_codec(networks.autoencoder, dtype=networks.codec_dtype, device=networks.device),
        make_executor=EagerExecutor,
        windows=lambda: window_networks(denoiser),
    )


def projecting_runtime(networks: ImageNetworks) -> ImageRuntime:
    """Return `plain_runtime` with a denoiser that takes each prompt's keys and values, computed once. If the network
    does not allow that, return `plain_runtime` itself; the log says why."""
    from .loading.text_projection import UNetTextProjection, obstacle

    plain, reason = plain_runtime(networks), obstacle(networks.unet)
    if reason is not None:
        logger.info("the keys and values of prompts are computed in every pass: %s", reason)
        return plain
    projection = UNetTextProjection(networks.unet, networks.dtype)
    denoiser = _denoiser(networks, projection.unet)
    return replace(plain, denoiser=denoiser, projection=projection, windows=lambda: window_networks(denoiser))


def _denoiser(networks: ImageNetworks, unet: Any) -> Denoiser:
    denoiser = UNetDenoiser(
        unet,
        schedule=networks.schedule,
        prediction_type=networks.prediction_type,
        device=networks.device,
        dtype=networks.dtype,
        guidance_embedding=networks.guidance_embedding,
    )
    if not networks.sliced:
        return denoiser
    from .slicing import RowByRow

    return RowByRow(denoiser)
