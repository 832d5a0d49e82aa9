"""Owns the way from a model's name to an engine: which kind of model it is, and who loads it.

Knows no network, no ring and no frame. Heavy libraries are imported when a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pipelines.core.errors import ModelError
from pipelines.files.lora_files import LoraFile

if TYPE_CHECKING:
    from pipelines.core.contracts import Engine
    from pipelines.core.tick_log import TickLog

logger = logging.getLogger(__name__)
Notice = Callable[[str], None]
_BACKENDS = ("auto", "eager", "cuda-graph")


def load_engine(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    width: int = 0,
    height: int = 0,
    frames_per_slot: int = 1,
    max_slots: int = 8,
    backend: str = "auto",
    loras: Sequence[LoraFile] = (),
    autoencoder: str = "auto",
    allow_pickle: bool = False,
    safety: bool = True,
    video: Mapping[str, Any] | None = None,
    stages: Sequence[str] = (),
    tick_log: TickLog | None = None,
    notice: Notice = logger.warning,
) -> Engine:
    """An engine for a bundled name ("mini-image"), a local diffusers folder, a hub id, or "identity".

    width, height: pixels, 0 for the model's own. max_slots: rows of the ring shared by all streams of an image engine.
    autoencoder: "auto" (the model's own), "tiny" (the small one that shares its latents), a folder or a hub id.
    safety: load the model's safety checker where it has one. video: what is chosen of a video model, see
    video.load_engine. stages: names of pipelines.stages.table, which every frame passes in this order before it is
    handed over. notice: gets sentences the user should see.
    Raises ModelError and its kinds, each with the remedy.
    """
    if model == "identity":
        from .identity import IdentityEngine

        return IdentityEngine(width=width or 192, height=height or 192, max_slots=max_slots, stages=stages)
    from .video.loading.source import is_video_model

    if is_video_model(model):
        from .video.loading.engine import load_video_engine

        common = {"device": device, "dtype": dtype, "width": width, "height": height, "backend": backend}
        chosen = {**common, "loras": tuple(loras), "autoencoder": autoencoder, "stages": tuple(stages), **(video or {})}
        return load_video_engine(model, chosen, frames_per_slot=frames_per_slot, tick_log=tick_log, notice=notice)
    if video:
        raise ModelError(f"{model} is no video model: {', '.join(video)} means nothing to it.", "Leave that out.")
    if backend not in _BACKENDS:
        raise ModelError(f"There is no backend {backend!r}.", f"Use one of: {', '.join(_BACKENDS)}.")
    from pipelines.image.loading.load import LoadOptions, load_image_model

    options = LoadOptions(
        device=device,
        dtype=dtype,
        loras=tuple(loras),
        autoencoder=autoencoder,
        allow_pickle=allow_pickle,
        safety=safety,
        notice=notice,
    )
    image_model = load_image_model(model, options)
    from .image.engine import ImageEngine

    return ImageEngine(
        image_model,
        width=width,
        height=height,
        frames_per_slot=frames_per_slot,
        max_slots=max_slots,
        backend=_choose_backend(backend, image_model.device),
        tick_log=tick_log,
        stages=stages,
    )


def _choose_backend(requested: str, device: torch.device) -> str:
    """auto: a CUDA graph on CUDA, eager elsewhere. Raises ModelError when a graph is asked of a CPU."""
    if requested == "auto":
        return "cuda-graph" if device.type == "cuda" else "eager"
    if requested == "cuda-graph" and device.type != "cuda":
        raise ModelError(f"The backend cuda-graph needs a CUDA device, not {device.type}.", "Use --backend eager.")
    return requested
