"""Owns the interface between loading, backends and the engine: the parts of an image model and their contracts.

pipelines/image/loading/load.py reads `ImageNetworks`, a backend makes an `ImageRuntime` from them, and
pipelines/image/engine.py runs the `ImageModel` that contains it. None of the three depends on the internals of another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from cache.features.lines import Features
from pipelines.core.conditions import PromptEncoder
from pipelines.core.contracts import Notify
from pipelines.core.execution import Executor
from pipelines.core.origin import Origin
from pipelines.core.preparation import NoPreparation, Preparation

from .step_profile import StepProfile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """The conditions of each of the N rows of a denoiser's batch.

    embeds: [N, L, D] float32, or what the runtime's `TextProjection` made of them. pooled: [N, P] float32 or None.
    time_ids: [N, 6] float32 (SDXL's sizes) or None. row: [N] int64 row handle in the ring. step: [N] int64 step index.
    negative: [N] int64, 1 where the negative prompt is evaluated; None: nothing reads it. Caches and backends key on
    these.
    inputs: further inputs from conditioners, by name: latent_bias, or keyword inputs of the network.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor | None
    time_ids: torch.Tensor | None
    row: torch.Tensor
    step: torch.Tensor
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    negative: torch.Tensor | None = None

    def of_rows(self, rows: torch.Tensor) -> Condition:
        """Return the conditions of some rows [K] int64, in that order."""

        def chosen(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows)

        return replace(
            self,
            embeds=self.embeds.index_select(0, rows),
            pooled=chosen(self.pooled),
            time_ids=chosen(self.time_ids),
            row=self.row.index_select(0, rows),
            step=self.step.index_select(0, rows),
            inputs={name: value.index_select(0, rows) for name, value in self.inputs.items()},
            negative=chosen(self.negative),
        )


class Denoiser(Protocol):
    """denoised = denoiser(latents, timestep, condition).

    latents: [N, C, h, w] float32 noisy latents x_t. timestep: [N] int64 in [0, num_train_timesteps).
    Returns x0: [N, C, h, w] float32; the wrapper converts from the network's own prediction (epsilon, v or sample).
    """

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor: ...


class TextProjection(Protocol):
    """Computes once what a denoiser needs of a prompt, instead of in every pass: keys and values of cross-attention."""

    @property
    def dtype(self) -> torch.dtype: ...
    def size(self, tokens: int) -> int:
        """Return the length of the vector for so many tokens."""
        ...

    def project(self, embeds: torch.Tensor) -> torch.Tensor:
        """embeds: [N, L, D] float32 -> [N, size], each row depending on its own embeddings only. Waits for nothing."""
        ...


class WindowNetworks(Protocol):
    """A denoiser that keeps what it computes, and computes windows from it. Shapes as in `Denoiser`."""

    @property
    def cell(self) -> int:
        """Windows begin and end at multiples of this many latents."""
        ...

    def whole(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> tuple[torch.Tensor, Features]:
        """Denoise whole pictures, with the result of the denoiser, and return what windows need besides."""
        ...

    def windows(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: Condition,
        around: Features,
        places: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, Features]:
        """Denoise windows [N, C, h, w]. around: `FeatureLines.around`. places: `FeatureLines.token_index`. Returns x0
        and what they computed: maps and tokens [N, h, w, C] by level, no scales."""
        ...


MakeWindowNetworks = Callable[[], "WindowNetworks | str"]


class LatentCodec(Protocol):
    """An autoencoder as the engine sees it. Latents are scaled to the denoiser's range."""

    @property
    def latent_channels(self) -> int: ...
    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        ...

    @property
    def margin(self) -> int | None:
        """How many latents around a window of a picture decide what it is encoded to and decoded from, as far as that
        matters; None: all of them."""
        ...

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images: [N, 3, H, W] float32 in [-1, 1] -> latents [N, C, H/factor, W/factor] float32."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents: [N, C, h, w] float32 -> images [N, 3, H, W] float32 in [-1, 1] (clamped)."""
        ...


class SafetyChecker(Protocol):
    """The safety checker published with a model."""

    def check(self, images: npt.NDArray[np.uint8]) -> list[bool]:
        """images: [N, H, W, 3] uint8 RGB. Returns True for each picture that must not be shown."""
        ...


class LoraControl(Protocol):
    """The live scale of the loaded LoRA files."""

    def set_scale(self, scale: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScheduleConfig:
    """The training schedule of a model, from its scheduler's configuration.

    alphas_cumprod: [T] float64, abar_t. original_inference_steps, timestep_scaling, sigma_data: LCM's constants
    (Luo et al. 2023, Latent Consistency Models; defaults of diffusers' LCMScheduler: 50, 10, 0.5).
    """

    alphas_cumprod: npt.NDArray[np.float64]
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageNetworks:
    """The loaded networks, from which a backend makes a runtime.

    unet: diffusers' UNet2DConditionModel in `dtype`. autoencoder: diffusers' module of the class `autoencoder_class`,
    in `codec_dtype`. prediction_type: "epsilon", "v_prediction" or "sample". guidance_embedding: [1, K] float32 for
    networks that were distilled with guidance as an input, else None. origin: what another process can load the same
    engine from, to compile its parts; None: nothing is compiled beside the engine. notice: what the user should see.
    sliced: the networks run slice by slice (pipelines/image/slicing.py), and the denoiser shall run row by row.
    """

    unet: Any
    autoencoder: Any
    autoencoder_class: str
    schedule: ScheduleConfig
    prediction_type: str
    device: torch.device
    dtype: torch.dtype
    codec_dtype: torch.dtype
    guidance_embedding: torch.Tensor | None = None
    origin: Origin | None = None
    notice: Notify = logger.warning
    sliced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRuntime:
    """What an image engine calls; made by a backend.

    backend: its name, for display. lanes: how many ticks of an engine run side by side; more than one needs a CUDA
    device, and denoiser and codec that keep no memory between calls. make_executor: makes the executor of a lane.
    projection: the denoiser's embeds are what it returns; None: they are the prompts' own. preparation: makes faster
    forms of the parts while the engine runs. windows: makes the further forms of the denoiser that reuse needs, or says
    why there are none, as a clause; None: this backend has none.
    """

    backend: str
    denoiser: Denoiser
    codec: LatentCodec
    make_executor: Callable[[], Executor]
    lanes: int = 1
    projection: TextProjection | None = None
    preparation: Preparation = field(default_factory=NoPreparation)
    windows: MakeWindowNetworks | None = None


MakeImageRuntime = Callable[[ImageNetworks], ImageRuntime]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageModel:
    """A loaded image model.

    size_px: native (width, height). defaults: control values that suit this model, by name in the control table.
    wants_time_ids: whether the network takes sizes as an input (SDXL-class models); the engine provides them.
    vocabulary: path of the bundled model's world.json, or None. load_profile: reads what was measured for step caches,
    if anything was; raises ModelError if it was measured with other weights. weights: returns the digest of the
    denoiser's weight files, by which profiles know their model; "": it has no files.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    size_px: tuple[int, int]
    runtime: ImageRuntime
    prompts: PromptEncoder
    schedule: ScheduleConfig
    defaults: dict[str, object]
    licence: str
    wants_time_ids: bool = False
    safety: SafetyChecker | None = None
    lora: LoraControl | None = None
    vocabulary: str | None = None
    load_profile: Callable[[], StepProfile | None] = lambda: None
    weights: Callable[[], str] = lambda: ""
