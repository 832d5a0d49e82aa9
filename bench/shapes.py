"""Owns models with random weights in published shapes, without downloads: speed does not depend on the weights.

Random embeddings replace the text encoder, which is not part of a tick, unless a measurement wants its shape too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.backends.base import Backend
from pipelines.backends.table import BACKENDS
from pipelines.core.conditions import TextCondition
from pipelines.core.origin import Origin
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel, ImageNetworks, ScheduleConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Constructors of the networks, the side of a picture in pixels, and the text embeddings' [tokens, width]."""

    name: str
    unet: Callable[[], UNet2DConditionModel]
    vae: Callable[[], AutoencoderTiny]
    side_px: int
    text: tuple[int, int]
    text_network: Callable[[], torch.nn.Module]


class RandomPrompts:
    """Random vectors [tokens, width] float32 for every text."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._shape, self._device = shape, device

    def encode(self, text: str) -> TextCondition:
        """Random, but deterministic for each text."""
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return TextCondition(embeds=torch.randn(self._shape, generator=random).to(self._device))


class RandomTokenizer:
    """Random, but deterministic token ids for each text, in the place of a CLIP tokenizer."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self.model_max_length, self._vocabulary = length, vocabulary

    def __call__(self, text: str, **options: object) -> SimpleNamespace:
        """input_ids: [1, model_max_length] int64, whatever the options."""
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return SimpleNamespace(input_ids=torch.randint(self._vocabulary, (1, self.model_max_length), generator=random))


def _clip_text(layers: int, width: int, heads: int, tokens: int) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    network: torch.nn.Module = CLIPTextModel(
        CLIPTextConfig(
            num_hidden_layers=layers,
            hidden_size=width,
            intermediate_size=4 * width,
            num_attention_heads=heads,
            projection_dim=width,
            max_position_embeddings=tokens,
            hidden_act="gelu",
        )
    )
    return network


def _sd_turbo_text() -> torch.nn.Module:
    """The text network of stabilityai/sd-turbo (OpenCLIP ViT-H without its last layer): 340 M parameters."""
    return _clip_text(layers=23, width=1024, heads=16, tokens=77)


def _sd_turbo_unet() -> UNet2DConditionModel:
    """The UNet of stabilityai/sd-turbo (Stable Diffusion 2.1's): 866 M parameters."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def _tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _tiny_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
    )


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "sd-turbo": Shape(
            name="sd-turbo",
            unet=_sd_turbo_unet,
            vae=AutoencoderTiny,  # TAESD by default
            side_px=512,
            text=(77, 1024),
            text_network=_sd_turbo_text,
        ),
        "tiny": Shape(
            name="tiny",
            unet=_tiny_unet,
            vae=_tiny_vae,
            side_px=64,
            text=(5, 16),
            text_network=partial(_clip_text, layers=2, width=16, heads=2, tokens=5),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """The networks of a shape, and the model that contains them."""

    shape: str
    networks: ImageNetworks
    model: ImageModel

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser's network."""
        return self.networks.unet

    @property
    def vae(self) -> AutoencoderTiny:
        """The codec's network."""
        return self.networks.autoencoder

    def model_with(self, backend: Backend) -> ImageModel:
        """The model as this backend runs it."""
        return replace(self.model, runtime=backend.image(self.networks))

    def prepared_with(self, name: str) -> ImageModel:
        """The model as the backend of this name runs it, which may compile its parts in other processes."""
        arguments = {"shape": self.shape, "device": str(self.networks.device), "dtype": self.networks.dtype}
        origin = Origin(
            model=f"{self.shape}, random weights",
            module="bench.shapes",
            function="shape_engine",
            arguments={**arguments, "backend": name},
        )
        runtime = BACKENDS[name].image(replace(self.networks, origin=origin, notice=print))
        return replace(self.model, runtime=runtime)

    def encoding_texts(self, model: ImageModel) -> ImageModel:
        """The model with a text network of its shape, run as its runtime runs one, in the place of random vectors."""
        from pipelines.image.loading.clip_text import ClipPromptEncoder

        shape, device = SHAPES[self.shape], self.networks.device
        with torch.device(device):
            network: Any = shape.text_network()
        network.to(dtype=self.networks.dtype).eval().requires_grad_(False)
        tokenizer = RandomTokenizer(shape.text[0], network.config.vocab_size)
        calls = model.runtime.make_executor().calls(warm_calls=2)
        return replace(model, prompts=ClipPromptEncoder(tokenizer, network, device=device, calls=calls))


def shape_engine(shape: str, device: str, dtype: torch.dtype, backend: str) -> ImageEngine:
    """An engine of a shape, as a backend runs it without plans."""
    return ImageEngine(build(SHAPES[shape], torch.device(device), dtype).model_with(BACKENDS[backend]))


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Parts:
    """Random weights on the device, channels last; the same in every process."""
    torch.manual_seed(0)
    with torch.device(device):
        unet, vae = shape.unet(), shape.vae()
    for network in (unet, vae):
        network.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    schedule = ScheduleConfig(alphas_cumprod=np.cumprod(1.0 - betas, dtype=np.float64))
    networks = ImageNetworks(
        unet=unet,
        autoencoder=vae,
        autoencoder_class="AutoencoderTiny",
        schedule=schedule,
        prediction_type="epsilon",
        device=device,
        dtype=dtype,
        codec_dtype=dtype,
    )
    model = ImageModel(
        name="random weights",
        device=device,
        dtype=dtype,
        size_px=(shape.side_px, shape.side_px),
        runtime=BACKENDS["eager"].image(networks),
        prompts=RandomPrompts(shape.text, device),
        schedule=schedule,
        defaults={},
        licence="none: random weights",
    )
    return Parts(shape=shape.name, networks=networks, model=model)
