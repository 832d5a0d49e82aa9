"""Owns whole clips through AutoencoderKLWan with gradients: the engine's streaming layers over an empty past.

diffusers' own forward runs frame by frame through a feature cache; here all frames go through each layer at once, with
the same results. Knows no loss and no normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipelines.video.codec_memory import FeatureMemory, Pass
from pipelines.video.wan_codec_layers import LayerBuilder, decoder_program, encoder_program

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan


class _NoPast(FeatureMemory):
    """What a stream remembers when it begins: zeros, and nothing is written."""

    def __init__(self, rows: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(1, device=device, dtype=dtype)
        self._rows = rows

    def read(self, slot: int, rows: Tensor | None) -> Tensor:
        """Zeros [rows, *shape]."""
        return super().read(slot, None).expand(self._rows, -1, -1, -1, -1)

    def write(self, slot: int, rows: Tensor | None, values: Tensor) -> None:
        """Nothing is kept."""


class WholeClips:
    """Encode and decode clips of one size from their first frame on, differentiable, with the module's weights.

    Follows the weights where an optimiser moves them. One object for each dtype and device of the module.
    """

    def __init__(self, vae: AutoencoderKLWan, *, clips: int, size_px: int) -> None:
        """clips: of each call, size_px: of their sides."""
        weight = vae.quant_conv.weight
        self._memory = _NoPast(clips, device=weight.device, dtype=weight.dtype)
        self._channels: int = vae.config.z_dim
        cells = size_px // 2 ** (len(vae.config.dim_mult) - 1)
        pixels = LayerBuilder(self._memory, height=size_px, width=size_px, channels_last=True)
        latents = LayerBuilder(self._memory, height=cells, width=cells, channels_last=True)
        self._encoder, self._decoder = encoder_program(vae, pixels), decoder_program(vae, latents)

    def encode(self, frames: Tensor) -> Tensor:
        """[clips, 3, 1 + 4k, S, S] in -1..1 -> the mean of the latents' posterior, [clips, C, 1 + k, s, s]."""
        return self._encoder(frames.contiguous(memory_format=torch.channels_last_3d), self._start)[:, : self._channels]

    def decode(self, latents: Tensor) -> Tensor:
        """[clips, C, n, s, s], not normalised -> frames [clips, 3, 4n - 3, S, S] in about -1..1, not clamped."""
        return self._decoder(latents.contiguous(memory_format=torch.channels_last_3d), self._start)

    @property
    def _start(self) -> Pass:
        return Pass(memory=self._memory, rows=None, first=True)
