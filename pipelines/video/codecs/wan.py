"""Owns diffusers' AutoencoderKLWan (Wan 2.1) as a streaming VideoCodec: equal to its whole-clip encode and decode.

Takes and returns normalised latents: z = (raw - latents_mean) / latents_std, of the model's configuration. Independent
of transformers, prompts and files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from pipelines.core.errors import InputError, ModelLayoutError

from .codec import CodecStream, VideoCodec, check_frame_size, check_latents, check_pixels, frames_of, latents_of
from .memory import FeatureMemory, Pass
from .wan_layers import LayerBuilder, decoder_program, encoder_program


@dataclass(frozen=True, slots=True, kw_only=True)
class WanCodecOptions:
    """latents_per_pass: a longer chunk is split into passes of this many latents (same result, lower peak memory).
    channels_last: activations, weights and state in channels-last order, which is faster on GPUs and on CPUs.
    fused: decode by kernels of wan_fused.py; on CUDA, in 16 bits, with Triton and channels_last.
    """

    latents_per_pass: int = 4
    channels_last: bool = True
    fused: bool = False

    def __post_init__(self) -> None:
        if self.latents_per_pass < 1:
            raise InputError(f"latents_per_pass is {self.latents_per_pass}.", "Use 1 or more.")


class WanCodec:
    """The stock autoencoder of Wan 2.1. Uses the module's own weights, in their dtype and on their device.

    vae: in evaluation mode, in float32, bfloat16 or float16 (its norms are computed in float32 either way). Raises
    ModelLayoutError for the residual variant of Wan 2.2.
    """

    encoder_delay_frames = 0

    def __init__(self, vae: AutoencoderKLWan, options: WanCodecOptions | None = None) -> None:
        config = vae.config
        if config.is_residual or config.patch_size not in (None, 1):
            raise ModelLayoutError(
                "This is the residual autoencoder of Wan 2.2, which is not supported.", "Use a model based on Wan 2.1."
            )
        if not len(config.latents_mean) == len(config.latents_std) == config.z_dim:
            raise ModelLayoutError(
                f"The autoencoder has {config.z_dim} latent channels, but {len(config.latents_mean)} means and "
                f"{len(config.latents_std)} standard deviations.",
                "Give latents_mean and latents_std one number for each channel in its config.json.",
            )
        self.latent_channels: int = config.z_dim
        self.factor = 2 ** (len(config.dim_mult) - 1)
        self.time_factor = 2 ** sum(config.temperal_downsample)
        self.options = options or WanCodecOptions()
        self._vae = vae
        self._order = torch.channels_last_3d if self.options.channels_last else torch.contiguous_format
        if self.options.channels_last:
            _order_channels_last(vae)
        exact = torch.promote_types(torch.float32, self.dtype)
        shape = (1, config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, dtype=exact, device=self.device).view(shape)
        self._std = torch.tensor(config.latents_std, dtype=exact, device=self.device).view(shape)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self._vae.quant_conv.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the convolutions; latents and pixels are returned in float32 (float64 for float64)."""
        dtype: torch.dtype = self._vae.quant_conv.weight.dtype
        return dtype

    def decoder(self, *, height: int, width: int, rows: int = 1) -> WanDecoderStream:
        """Make a streaming decoder for frames of height × width pixels, `rows` streams in one batch."""
        check_frame_size(height, width, self.factor)
        return WanDecoderStream(self, height=height, width=width, rows=rows)

    def encoder(self, *, height: int, width: int, rows: int = 1) -> WanEncoderStream:
        """Make a streaming encoder for frames of height × width pixels, `rows` streams in one batch."""
        check_frame_size(height, width, self.factor)
        return WanEncoderStream(self, height=height, width=width, rows=rows)

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Latents of the autoencoder -> latents of the transformer, [B, C, n, h, w]."""
        return (raw.to(self._mean.dtype) - self._mean) / self._std

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the transformer -> latents of the autoencoder, in its dtype and order."""
        raw = latents.to(self._mean) * self._std + self._mean
        return raw.to(dtype=self.dtype, memory_format=self._order)

    def to_network(self, pixels: torch.Tensor) -> torch.Tensor:
        """[0, 1] -> [-1, 1] in the autoencoder's dtype and order."""
        return (pixels.to(self._mean) * 2 - 1).to(dtype=self.dtype, memory_format=self._order)

    def to_pixels(self, values: torch.Tensor) -> torch.Tensor:
        """[-1, 1], clamped -> [0, 1] in float32."""
        return values.to(self._mean.dtype).clamp(-1, 1) * 0.5 + 0.5

    def memory(self, rows: int) -> FeatureMemory:
        """Make empty memory for `rows` rows, on the weights' device and in their dtype."""
        if rows < 1:
            raise InputError(f"{rows} rows were requested.", "Use 1 or more.")
        return FeatureMemory(rows, device=self.device, dtype=self.dtype)

    def builder(self, memory: FeatureMemory, height: int, width: int) -> LayerBuilder:
        """Return a builder of streaming layers over the module's weights."""
        return LayerBuilder(memory, height=height, width=width, channels_last=self.options.channels_last)

    def decoder_builder(self, memory: FeatureMemory, height: int, width: int) -> LayerBuilder:
        """Return the builder of decoders: of fused layers if the options say so."""
        if not self.options.fused:
            return self.builder(memory, height, width)
        from .wan_fused import FusedBuilder

        return FusedBuilder(memory, height=height, width=width, channels_last=True)

    @property
    def vae(self) -> AutoencoderKLWan:
        """The module whose weights are used."""
        return self._vae


def fused_codec(codec: VideoCodec) -> WanCodec | None:
    """Return the same autoencoder with a fused decoder; None if it is another kind or its device has no such kernels.

    They use Hopper's tensor memory accelerator, and Triton.
    """
    if not isinstance(codec, WanCodec) or not codec.options.channels_last or codec.device.type != "cuda":
        return None
    capable = (
        torch.cuda.get_device_capability(codec.device) >= (9, 0) and importlib.util.find_spec("triton") is not None
    )
    if not capable or codec.dtype not in (torch.bfloat16, torch.float16):
        return None
    return WanCodec(codec.vae, replace(codec.options, fused=True))


class WanDecoderStream(CodecStream):
    """Decodes chunk by chunk. Its state at 480×832 in bfloat16 is 1.89 GB per row."""

    def __init__(self, codec: WanCodec, *, height: int, width: int, rows: int) -> None:
        memory = codec.memory(rows)
        super().__init__(memory, height=height, width=width)
        self._codec = codec
        self._size = height // codec.factor, width // codec.factor
        self._program = decoder_program(codec.vae, codec.decoder_builder(memory, *self._size))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """latents [B, C, n, h, w], an entry for each of `rows` (None: all) -> pixels [B, 3, F, H, W] float32 in [0, 1];
        F = 1 + 4(n - 1) for rows at their first call, else 4n. Raises InputError.
        """
        numbers, index, first = self._begin(rows)
        height, width = self._size
        check_latents(latents, channels=self._codec.latent_channels, height=height, width=width, batch=len(numbers))
        pixels = self.run(latents, index, first=first)
        self.advance(numbers, latents.shape[2])
        return pixels

    @torch.no_grad()
    def run(self, values: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor:
        """`decode` without checks and counts."""
        parts: list[torch.Tensor] = []
        for chunk in torch.split(values, self._codec.options.latents_per_pass, dim=2):
            run = Pass(memory=self._memory, rows=rows, first=first and not parts)
            parts.append(self._codec.to_pixels(self._program(self._codec.denormalise(chunk), run)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class WanEncoderStream(CodecStream):
    """Encodes chunk by chunk; the latents are the mode of the posterior.

    Its state at 480×832 in bfloat16 is 1.12 GB per row.
    """

    def __init__(self, codec: WanCodec, *, height: int, width: int, rows: int) -> None:
        memory = codec.memory(rows)
        super().__init__(memory, height=height, width=width)
        self._codec = codec
        self._program = encoder_program(codec.vae, codec.builder(memory, height, width))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """pixels [B, 3, F, H, W] in [0, 1], an entry for each of `rows` (None: all) -> latents [B, C, n, h, w] float32;
        F = 1 + 4(n - 1) for rows at their first call, else 4n. Raises InputError.
        """
        numbers, index, first = self._begin(rows)
        check_pixels(pixels, height=self.height, width=self.width, batch=len(numbers))
        latents = latents_of(pixels.shape[2], first=first, time_factor=self._codec.time_factor)
        result = self.run(pixels, index, first=first)
        self.advance(numbers, latents)
        return result

    @torch.no_grad()
    def run(self, values: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor:
        """`encode` without checks and counts."""
        codec, begin = self._codec, 0
        parts: list[torch.Tensor] = []
        while begin < values.shape[2]:
            opens = first and not begin
            end = begin + frames_of(codec.options.latents_per_pass, first=opens, time_factor=codec.time_factor)
            run = Pass(memory=self._memory, rows=rows, first=opens)
            moments = self._program(codec.to_network(values[:, :, begin:end]), run)
            parts.append(codec.normalise(moments[:, : codec.latent_channels]))
            begin = end
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _order_channels_last(vae: AutoencoderKLWan) -> None:
    for parameter in vae.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        elif parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
