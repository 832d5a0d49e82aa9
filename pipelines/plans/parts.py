"""Owns the parts of a model that plans are built of ahead of any stream, with example inputs.

Independent of recipes and stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from pipelines.backends.base import Backend
from pipelines.backends.calibration.record import recorded
from pipelines.backends.table import backend_table
from pipelines.core.contracts import Engine, Notify
from pipelines.core.errors import ModelError
from pipelines.core.parts import Part, Tensors
from pipelines.files.loader_options import LoaderOptions
from pipelines.files.lora_files import described_loras
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageNetworks, ImageRuntime
from pipelines.image.runtime import projecting_runtime
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoNetworks, VideoRuntime
from pipelines.video.parts import pass_part
from pipelines.video.runtime import plain_runtime as plain_video_runtime

from .collect import image_parts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelParts:
    """The parts of a loaded model. name: the model's. lora: its LoRA files and weights, which are merged; "": none.
    samples: returns so many inputs of a part, as an engine records them.
    """

    name: str
    parts: tuple[Part, ...]
    samples: Callable[[Part, int], Sequence[Tensors]]
    lora: str = ""


def model_parts(
    model: str, options: LoaderOptions, *, dtype: torch.dtype | None, slots: Sequence[int], notice: Notify
) -> ModelParts:
    """Load a model and return its parts at the size of `options`.

    An image model's: the encoder, the decoder, and the denoiser for batches of `slots` slots, one slot for each step
    that is in flight at once. A video model's: the pass of one stream over a chunk, with the window full.
    dtype: of the networks, float16 on a CPU too, for plans of a card that is elsewhere; None: as `options` says.
    Raises ModelError.
    """
    plain = _PlainBackend(name="plain", purpose="parts for plans", dtype=dtype)
    wanted = options if dtype is None else replace(options, dtype="float32")

    @cache
    def load() -> Engine:
        return load_engine(model, wanted, notice=notice, backends=backend_table(plain), backend="plain")

    engine, lora = load(), described_loras(options.loras)
    if isinstance(engine, ImageEngine):
        load.cache_clear()  # collecting uses up the engine
        parts = tuple(image_parts(engine, slots))
        return ModelParts(name=model, parts=parts, samples=lambda part, count: recorded(load(), part, count), lora=lora)
    if isinstance(engine, VideoEngine):
        with torch.no_grad():
            part = window_pass(engine)
        inputs = tuple(part.inputs.values())
        return ModelParts(name=model, parts=(part,), samples=lambda part, count: [inputs] * count, lora=lora)
    raise ModelError(f"{model} has no networks that plans could be built of.", "Choose an image or a video model.")


@dataclass(frozen=True, kw_only=True)
class _PlainBackend(Backend):
    """Runs the networks eagerly, in a dtype that the device need not compute fast in."""

    dtype: torch.dtype | None

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        if self.dtype is not None:
            codec_dtype = torch.float32 if _overflows(networks, self.dtype) else self.dtype
            networks = replace(
                networks,
                unet=_cast(networks.unet, self.dtype),
                autoencoder=_cast(networks.autoencoder, codec_dtype),
                dtype=self.dtype,
                codec_dtype=codec_dtype,
            )
        return projecting_runtime(networks)

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        if self.dtype is not None:
            networks.transformer.set_precision(self.dtype)
        return plain_video_runtime(networks)


def _overflows(networks: ImageNetworks, dtype: torch.dtype) -> bool:
    """Whether it is SDXL's own autoencoder, which stays in float32; see `codec_dtype` of the loader."""
    text_time = networks.unet.config.get("addition_embed_type") == "text_time"
    kl = networks.autoencoder_class == "AutoencoderKL" and networks.autoencoder.config.get("force_upcast", True)
    return bool(dtype is torch.float16 and text_time and kl)


def _cast(network: Any, dtype: torch.dtype) -> Any:
    for parameter in (*network.parameters(), *network.buffers()):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return network


def window_pass(engine: VideoEngine) -> Part:
    """Return the pass of one stream over a chunk, with the window full."""
    core, transformer = engine.core, engine.core.model.transformer
    device, random = transformer.device, torch.Generator().manual_seed(0)
    frames = core.preset.chunk_frames
    past = core.preset.window_frames - frames
    channels, height, width = core.latent_shape
    grid = transformer.grid(height, width)
    tokens = grid[0] * grid[1]

    def keys(count: int) -> torch.Tensor:
        size = (transformer.layers, 1, count, transformer.heads, transformer.head_dim)
        return torch.randn(size, generator=random).to(device, transformer.dtype)

    cos, sin = transformer.full_window(frames, grid, torch.arange(past, past + frames, device=device)).query_rotation
    inputs = {
        "latents": torch.randn((1, channels, frames, height, width), generator=random).to(device),
        "timesteps": torch.full((1, frames), 700.0, device=device),
        "text_keys": keys(transformer.config.text_len),
        "text_values": keys(transformer.config.text_len),
        "past_keys": keys(past * tokens),
        "past_values": keys(past * tokens),
        "cos": cos[None].contiguous(),
        "sin": sin[None].contiguous(),
    }
    if core.model.takes_actions:
        inputs["actions"] = torch.zeros((1, frames, 5), device=device)
    return pass_part(transformer, inputs)
