"""Owns the way from a model's name to an engine: which kind of model it is, and who loads it.

Knows no network, no ring and no frame. Heavy libraries are imported when a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.backends.base import Backend
from pipelines.backends.table import BACKENDS, choose_backend
from pipelines.core.errors import ModelError
from pipelines.files.lora_files import LoraFile
from pipelines.files.precision import choose_device

if TYPE_CHECKING:
    from pipelines.core.contracts import Engine
    from pipelines.core.tick_log import TickLog

logger = logging.getLogger(__name__)
Notice = Callable[[str], None]


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
    tick_log: TickLog | None = None,
    notice: Notice = logger.warning,
    backends: Mapping[str, Backend] = BACKENDS,
) -> Engine:
    """An engine for a bundled name ("mini-image"), a local diffusers folder, a hub id, or "identity".

    width, height: pixels, 0 for the model's own. max_slots: rows of the ring shared by all streams of an image engine.
    autoencoder: "auto" (the model's own), "tiny" (the small one that shares its latents), a folder or a hub id.
    safety: load the model's safety checker where it has one. video: what is chosen of a video model, see
    video.load_engine. notice: gets sentences the user should see.
    backend: a name of `backends`, or "auto"; a program can give a longer table than BACKENDS (backends.table).
    Raises ModelError and its kinds, each with the remedy.
    """
    if model == "identity":
        from .identity import IdentityEngine

        return IdentityEngine(width=width or 192, height=height or 192, max_slots=max_slots)
    from .video.loading.source import is_video_model

    if is_video_model(model):
        from .video.loading.engine import load_video_engine

        common = {"device": device, "dtype": dtype, "width": width, "height": height, "backend": backend}
        chosen = {**common, "loras": tuple(loras), "autoencoder": autoencoder, **(video or {})}
        video_backend = _backend_of(str(chosen.pop("backend")), "video", str(chosen["device"]), backends)
        return load_video_engine(
            model,
            chosen,
            frames_per_slot=frames_per_slot,
            make_runtime=video_backend.video,
            tick_log=tick_log,
            notice=notice,
        )
    if video:
        raise ModelError(f"{model} is no video model: {', '.join(video)} means nothing to it.", "Leave that out.")
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
    image_model = load_image_model(model, options, _backend_of(backend, "image", device, backends).image)
    from .image.engine import ImageEngine

    return ImageEngine(
        image_model,
        width=width,
        height=height,
        frames_per_slot=frames_per_slot,
        max_slots=max_slots,
        tick_log=tick_log,
    )


def _backend_of(requested: str, kind: str, device: str, backends: Mapping[str, Backend]) -> Backend:
    """The backend for models of a kind. Raises ModelError."""
    choice = choose_backend(requested, kind, choose_device(device), backends)
    logger.info("backend %s", choice.reason)
    return choice.backend
