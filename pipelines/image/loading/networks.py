"""Owns the adapters from diffusers' networks to the contracts of pipelines/image/model.py: denoiser, latent codecs.

Everything outside the networks is float32 (float64 for a float64 model); inputs are cast explicitly, without autocast.
Independent of files, prompts and the ring.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pipelines.conditioning.base import LATENT_BIAS
from pipelines.core.errors import ModelLayoutError
from pipelines.image.model import Condition, LatentCodec, ScheduleConfig

# (latents, prediction, a, b) -> x0, where x_t = a x0 + b eps, a = sqrt(abar_t), b = sqrt(1 - abar_t).
_ToClean = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _from_epsilon(x: torch.Tensor, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x0 = (x_t - b eps) / a (Ho et al. 2020, equation 15)."""
    return (x - b * out) / a


def _from_velocity(x: torch.Tensor, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x0 = a x_t - b v (Salimans and Ho 2022, appendix D)."""
    return a * x - b * out


def _from_sample(x: torch.Tensor, out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The network predicts x0 itself."""
    return out


_PREDICTIONS: Mapping[str, _ToClean] = {
    "epsilon": _from_epsilon,
    "v_prediction": _from_velocity,
    "sample": _from_sample,
}


class UNetDenoiser(nn.Module):
    """A UNet2DConditionModel as a `Denoiser`: latents in, x0 out. Stateless after construction."""

    _a: torch.Tensor
    _b: torch.Tensor
    _guidance: torch.Tensor | None

    def __init__(
        self,
        unet: Any,
        *,
        schedule: ScheduleConfig,
        prediction_type: str,
        device: torch.device,
        dtype: torch.dtype,
        guidance_embedding: torch.Tensor | None = None,
    ) -> None:
        """guidance_embedding: [1, K], for networks distilled with guidance as an input (time_cond_proj_dim)."""
        super().__init__()
        if prediction_type not in _PREDICTIONS:
            raise ModelLayoutError(
                f"The scheduler's prediction_type {prediction_type!r} is unknown.",
                f"Known: {', '.join(_PREDICTIONS)}.",
            )
        self.unet = unet
        self._to_clean = _PREDICTIONS[prediction_type]
        self._dtype = dtype
        self._io_dtype = torch.float64 if dtype is torch.float64 else torch.float32
        abar = torch.from_numpy(schedule.alphas_cumprod)
        guidance = None if guidance_embedding is None else guidance_embedding.to(device=device, dtype=dtype)
        self.register_buffer("_a", abar.sqrt().to(device=device, dtype=self._io_dtype))
        self.register_buffer("_b", (1 - abar).sqrt().to(device=device, dtype=self._io_dtype))
        self.register_buffer("_guidance", guidance)

    def with_unet(self, unet: Any) -> UNetDenoiser:
        """Return the same around another network, which must take and give what this one does."""
        other = copy.copy(self)
        other._modules = {**self._modules, "unet": unet}
        return other

    @torch.no_grad()
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`."""
        sample, inputs = self.network_inputs(latents, condition)
        return self.clean(latents, self.unet(sample, timestep, return_dict=False, **inputs)[0], timestep)

    def network_inputs(self, latents: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return what the network is called with besides the timestep: its sample, and its other inputs by name."""
        added = None
        if condition.pooled is not None:
            assert condition.time_ids is not None, "a model with pooled prompts needs time_ids"
            added = {"text_embeds": condition.pooled.to(self._dtype), "time_ids": condition.time_ids.to(self._dtype)}
        guidance = None if self._guidance is None else self._guidance.expand(latents.shape[0], -1)
        inputs = {name: value.to(self._dtype) for name, value in condition.inputs.items() if name != LATENT_BIAS}
        bias = condition.inputs.get(LATENT_BIAS)
        seen = latents if bias is None else latents + bias
        given = {
            "encoder_hidden_states": condition.embeds.to(self._dtype),
            "timestep_cond": guidance,
            "added_cond_kwargs": added,
            **inputs,
        }
        return seen.to(self._dtype).contiguous(memory_format=torch.channels_last), given

    def clean(self, latents: torch.Tensor, prediction: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Return x0 [N, C, h, w] from the network's own prediction for latents x_t."""
        a = self._a.index_select(0, timestep).view(-1, 1, 1, 1)
        b = self._b.index_select(0, timestep).view(-1, 1, 1, 1)
        clean = self._to_clean(latents.to(self._io_dtype), prediction.to(self._io_dtype), a, b)
        return clean.contiguous()


class _Codec(nn.Module):
    """What both codecs share: casts, factor and number of latent channels."""

    margin: int | None = None

    def __init__(self, autoencoder: Any, *, factor: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.latent_channels = int(autoencoder.config.latent_channels)
        self.factor = factor
        self._dtype = dtype
        self._io_dtype = torch.float64 if dtype is torch.float64 else torch.float32

    def _to_network(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype).contiguous(memory_format=torch.channels_last)

    def _from_network(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._io_dtype).contiguous()


class KLCodec(_Codec):
    """AutoencoderKL as a `LatentCodec`. Encoding returns the posterior mean, since sampling would make streams flicker.

    latents = (z - shift) * scaling, or (z - mean) * scaling / std per channel where the configuration has
    latents_mean and latents_std (as in diffusers' pipelines).
    """

    _shift: torch.Tensor
    _scale: torch.Tensor

    def __init__(self, autoencoder: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        config = autoencoder.config
        super().__init__(autoencoder, factor=2 ** (len(config.block_out_channels) - 1), dtype=dtype)
        scaling = float(config.scaling_factor)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            shifts, scales = [float(m) for m in mean], [scaling / float(s) for s in std]
        else:
            shifts, scales = [float(config.get("shift_factor") or 0.0)], [scaling]
        for name, values in (("_shift", shifts), ("_scale", scales)):
            self.register_buffer(name, torch.tensor(values, device=device, dtype=self._io_dtype).view(1, -1, 1, 1))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        moments = self.autoencoder.encode(self._to_network(images), return_dict=False)[0]
        return (self._from_network(moments.mode()) - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        z = latents.to(self._io_dtype) / self._scale + self._shift
        return self._from_network(self.autoencoder.decode(self._to_network(z), return_dict=False)[0]).clamp(-1, 1)


class TinyImageCodec(_Codec):
    """AutoencoderTiny (TAESD and related) as a `LatentCodec`. Latents are multiplied by its scaling factor."""

    margin = 4

    def __init__(self, autoencoder: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        config = autoencoder.config
        super().__init__(autoencoder, factor=2 ** (len(config.encoder_block_out_channels) - 1), dtype=dtype)
        self._scaling = float(config.scaling_factor)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        return (
            self._from_network(self.autoencoder.encode(self._to_network(images), return_dict=False)[0]) * self._scaling
        )

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        z = latents.to(self._io_dtype) / self._scaling
        return self._from_network(self.autoencoder.decode(self._to_network(z), return_dict=False)[0]).clamp(-1, 1)


CODECS: Mapping[str, Callable[..., LatentCodec]] = MappingProxyType(
    {"AutoencoderKL": KLCodec, "AutoencoderTiny": TinyImageCodec}
)
"""Codec constructors, (autoencoder, *, dtype, device), by the autoencoder's class in diffusers."""


def channels_last(module: nn.Module) -> nn.Module:
    """Convert to channels-last memory format, which is faster on CPUs and tensor cores; values are unchanged."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def guidance_scale_embedding(guidance: float, width: int) -> torch.Tensor:
    """Embed w = guidance as sines and cosines of 1000 w: [1, width] float32.

    Luo et al. 2023, section 4.2; as in diffusers' LCM pipeline.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = guidance * 1000.0 * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]
