"""Owns encoding and decoding whole clips with AutoencoderKLWan and gradients: the engine's streaming layers over an
empty past.

diffusers' own forward runs frame by frame through a feature cache; here all frames go through each layer at once, with
the same results. Independent of losses and normalisation.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanRMS_norm
from torch import Tensor, nn

from pipelines.video.codecs.memory import FeatureMemory, Pass
from pipelines.video.codecs.wan_layers import LayerBuilder, decoder_program, encoder_program


class _NoPast(FeatureMemory):
    """The memory of a new stream: reads zeros, ignores writes."""

    def __init__(self, rows: int, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(1, device=device, dtype=dtype)
        self._rows = rows

    def read(self, slot: int, rows: Tensor | None) -> Tensor:
        """Zeros [rows, *shape]."""
        return super().read(slot, None).expand(self._rows, -1, -1, -1, -1)

    def write(self, slot: int, rows: Tensor | None, values: Tensor) -> None:
        """Ignored."""


class WholeClips:
    """Encode and decode clips of one size from their first frame on, differentiably, with the module's weights.

    Sees updates of the weights. One object per dtype and device of the module.
    """

    def __init__(self, vae: AutoencoderKLWan, *, clips: int, size_px: int) -> None:
        """clips: per call; size_px: of their sides."""
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


class ChannelNorm(nn.Module):
    """diffusers' WanRMS_norm (x divided by its channels' root mean square, times gamma) without its float32 copies.

    Only the root is float32. In 16 bits this halves a step's memory traffic.
    """

    MIN = 1e-4
    """Epsilon of a norm: the stock one's 1e-12 makes gradients infinite in 16 bits."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=exact).clamp(min=self.MIN)
        result: Tensor = x * (x.shape[1] ** 0.5 / norm).to(x.dtype) * self.gamma
        return result


def use_lean_norms(vae: AutoencoderKLWan) -> None:
    """Replace every norm by a ChannelNorm with the same parameter under the same name, for training."""
    for parent in list(vae.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, WanRMS_norm):
                setattr(parent, name, ChannelNorm(child.gamma))
