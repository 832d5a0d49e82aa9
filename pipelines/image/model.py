"""The seam between loading and engines: what an image model is, as parts with one-method contracts.

pipelines/load.py builds an `ImageModel`; pipelines/image/engine.py runs one. Neither knows the other's inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from pipelines.core.conditions import PromptEncoder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """What a denoiser is told about each of N rows of a batch.

    embeds: [N, L, D] float32. pooled: [N, P] float32 or None. time_ids: [N, 6] float32 (SDXL's sizes) or None.
    row: [N] int64 row handle in the ring; step: [N] int64 step index: what caches and backends key on.
    inputs: what else conditioners add, by name: latent_bias, or keyword inputs of the network.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor | None
    time_ids: torch.Tensor | None
    row: torch.Tensor
    step: torch.Tensor
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Denoiser(Protocol):
    """denoised = denoiser(latents, timestep, condition).

    latents: [N, C, h, w] float32 noisy latents x_t. timestep: [N] int64 in [0, num_train_timesteps).
    Returns x0: [N, C, h, w] float32; the wrapper converts from the network's own prediction (epsilon, v or sample).
    """

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor: ...


class LatentCodec(Protocol):
    """An autoencoder as the engine sees it. Latents are already scaled to the denoiser's range."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images: [N, 3, H, W] float32 in [-1, 1] -> latents [N, C, H/factor, W/factor] float32."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents: [N, C, h, w] float32 -> images [N, 3, H, W] float32 in [-1, 1] (clamped)."""
        ...


class SafetyChecker(Protocol):
    """The published model's own checker."""

    def check(self, images: npt.NDArray[np.uint8]) -> list[bool]:
        """images: [N, H, W, 3] uint8 RGB; True marks a picture that must not be shown."""
        ...


class LoraControl(Protocol):
    """The live scale of the loaded LoRA files."""

    def set_scale(self, scale: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleConfig:
    """The training schedule of a model, from its scheduler's config.

    alphas_cumprod: [T] float64, abar_t. original_inference_steps, timestep_scaling, sigma_data: LCM's constants
    (Luo et al. 2023, Latent Consistency Models; defaults of diffusers' LCMScheduler: 50, 10, 0.5).
    """

    alphas_cumprod: npt.NDArray[np.float64]
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageModel:
    """A loaded image model.

    size_px: native (width, height). defaults: control values that suit this model (names of the control table).
    time_ids: [6] float32 for SDXL-class models at native size, else None (the engine makes them for other sizes).
    vocabulary: path of the bundled model's world.json, or None.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    size_px: tuple[int, int]
    denoiser: Denoiser
    codec: LatentCodec
    prompts: PromptEncoder
    schedule: ScheduleConfig
    defaults: dict[str, object]
    licence: str
    wants_time_ids: bool = False
    safety: SafetyChecker | None = None
    lora: LoraControl | None = None
    vocabulary: str | None = None
