"""Image models without files: a cheap one for unit tests, and a tiny random UNet for parity tests.

Both have 4 latent channels, pictures of 16x16 and a codec of factor 2, and work in float32 or float64.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.core.conditions import TextCondition
from pipelines.core.execution import EagerExecutor
from pipelines.core.types import Frame
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition, Denoiser, ImageModel, ImageRuntime, LatentCodec, ScheduleConfig

SIDE_PX = 16
TEXT_SHAPE = (3, 16)


def stable_diffusion_schedule() -> ScheduleConfig:
    """Scaled linear betas, as published."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    return ScheduleConfig(alphas_cumprod=np.cumprod(1.0 - betas))


class BlockCodec:
    """Encodes 2x2 blocks as their mean, with the brightness as a fourth channel; decodes by repetition."""

    latent_channels = 4
    factor = 2
    margin = 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images, 2)
        return torch.cat([means, means.mean(1, keepdim=True)], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2).clamp(-1, 1)


class HashPrompts:
    """Encodes each text as its own random vectors."""

    def __init__(self, pooled: bool = False) -> None:
        self._pooled = pooled
        self.encoded: list[str] = []

    def encode(self, text: str) -> TextCondition:
        self.encoded.append(text)
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        embeds = torch.randn(TEXT_SHAPE, generator=random)
        return TextCondition(embeds=embeds, pooled=torch.randn(8, generator=random) if self._pooled else None)


class ArithmeticDenoiser:
    """Computes x0 by a few operations on latents, timestep and text; records its inputs."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], Condition]] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        # The engine reuses its buffers.
        self.calls.append((timestep.tolist(), replace(condition, embeds=condition.embeds.clone())))
        text = condition.embeds.mean(1)[:, :4, None, None].to(latents.dtype)
        time = (timestep.to(latents.dtype) / 1000)[:, None, None, None]
        return 0.5 * torch.tanh(latents + text) + 0.1 * time * text


class BlackList:
    """A safety checker that flags pictures brighter than `limit`."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def check(self, images: np.ndarray) -> list[bool]:
        return [bool(image.mean() > self.limit) for image in images]


def cheap_runtime(denoiser: Denoiser | None = None, codec: LatentCodec | None = None) -> ImageRuntime:
    """Return a runtime, arithmetic by default."""
    return ImageRuntime(
        backend="eager",
        denoiser=denoiser or ArithmeticDenoiser(),
        codec=codec or BlockCodec(),
        make_executor=EagerExecutor,
    )


def cheap_model(*, denoiser: Denoiser | None = None, codec: LatentCodec | None = None, **changes: object) -> ImageModel:
    """Return a model over `cheap_runtime`. changes: fields of ImageModel."""
    fields: dict[str, object] = {
        "name": "cheap",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "size_px": (SIDE_PX, SIDE_PX),
        "runtime": cheap_runtime(denoiser, codec),
        "prompts": HashPrompts(),
        "schedule": stable_diffusion_schedule(),
        "defaults": {},
        "licence": "none",
    }
    return ImageModel(**{**fields, **changes})  # type: ignore[arg-type]


@functools.cache
def tiny_unet(dtype: torch.dtype) -> UNet2DConditionModel:
    """Return a random conditional UNet, with the same weights for each dtype. Shared: not to be modified."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            sample_size=SIDE_PX // 2,
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            mid_block_type=None,
            cross_attention_dim=TEXT_SHAPE[1],
            attention_head_dim=8,
            norm_num_groups=8,
        )
    return unet.to(dtype).eval().requires_grad_(False)


def unet_model(dtype: torch.dtype, schedule: ScheduleConfig | None = None) -> ImageModel:
    """Return a model over `tiny_unet`, which predicts noise."""
    schedule = schedule or stable_diffusion_schedule()
    denoiser = UNetDenoiser(
        tiny_unet(dtype), schedule=schedule, prediction_type="epsilon", device=torch.device("cpu"), dtype=dtype
    )
    return cheap_model(name="tiny-unet", dtype=dtype, denoiser=denoiser, schedule=schedule)


def frames(count: int, *, start: int = 0, side_px: int = SIDE_PX) -> list[Frame]:
    """Return distinct random frames, numbered from `start`."""
    return [
        Frame(
            image=np.random.default_rng(seq).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8),
            pts=10 * seq,
            time_base=Fraction(1, 240),
            seq=seq,
            captured_ns=1000 + seq,
        )
        for seq in range(start, start + count)
    ]
