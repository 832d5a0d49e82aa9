"""Owns the Wan decoder's layers over kernels of its own, for CUDA: the same weights, memory and results up to rounding.

A norm, SiLU and what was added before them are one kernel, which writes to where the next convolution reads, behind
that one's past frames. Convolutions whose tiles fit run in kernels of wan_triton.py: those of 96 channels, the last,
and those after upsampling, which read the smaller picture. The others are cuDNN's. Independent of normalisation and
streams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import nn

from .memory import Pass
from .wan_layers import Layer, LayerBuilder, Upsample, as_images, as_video, sees_one_frame
from .wan_triton import (
    HISTORY_FRAMES,
    Tile,
    add_norm_silu,
    causal_conv,
    causal_weights,
    fits,
    narrow_conv,
    narrow_weights,
    phase_weights,
    upsampled_conv,
)

_CAUSAL_TILES = {96: Tile(8, 16, 32, 64, 32, 4, 4)}
"""By output channels; the fastest of twelve on an H200 at 480×832."""
_NARROW = 8
"""Up to how many output channels a convolution is one product whose results are gathered."""
_UPSAMPLE_TILES = {96: Tile(4, 32, 32, 64, 32, 4, 4), 192: Tile(4, 16, 64, 128, 64, 8, 3)}
Convolve = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""[B, HISTORY_FRAMES + t, h, w, C] and what is added, [B, t, h, w, N] or None -> [B, t, h, w, N]."""


class NormedConv:
    """Norm, SiLU and a causal convolution over three frames."""

    def __init__(self, norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder) -> None:
        height, width = builder.size
        self._gamma = norm.gamma.flatten()
        self._slot = builder.slot(conv.in_channels, HISTORY_FRAMES)
        tile = _CAUSAL_TILES.get(conv.out_channels)
        self._bias: torch.Tensor | None = None
        if conv.out_channels <= _NARROW:
            self._convolve = _narrow(conv)
        elif tile is not None and fits(height, width, conv.in_channels, tile):
            self._convolve = _tiled(conv, tile)
        else:
            self._convolve, self._bias = _by_cudnn(conv), conv.bias

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, run: Pass
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, t, h, w, C], to which bias is added first -> [B, t, h, w, N], and a bias that is to be added to it."""
        return self._convolve(self._frames(x, bias, run), None), self._bias

    def with_shortcut(
        self, x: torch.Tensor, bias: torch.Tensor | None, shortcut: torch.Tensor, run: Pass
    ) -> torch.Tensor:
        """The same with its bias and the shortcut [B, t, h, w, N] added."""
        frames = self._frames(x, bias, run)
        if self._bias is None:
            return self._convolve(frames, shortcut)
        return add_norm_silu(self._convolve(frames, None), self._bias, shortcut, None, None, keep=True)

    def _frames(self, x: torch.Tensor, bias: torch.Tensor | None, run: Pass) -> torch.Tensor:
        batch, count, *rest = x.shape
        frames = torch.empty((batch, HISTORY_FRAMES + count, *rest), dtype=x.dtype, device=x.device)
        frames[:, :HISTORY_FRAMES] = pixels_first(run.memory.read(self._slot, run.rows))
        add_norm_silu(x, bias, None, self._gamma, frames, keep=False)
        run.memory.write(self._slot, run.rows, channels_first(frames[:, -HISTORY_FRAMES:]))
        return frames


class FusedResidualBlock:
    """See `wan_layers.ResidualBlock`."""

    def __init__(self, module: WanResidualBlock, builder: LayerBuilder) -> None:
        self._first = NormedConv(module.norm1, module.conv1, builder)
        self._second = NormedConv(module.norm2, module.conv2, builder)
        self._shortcut = module.conv_shortcut

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        y, bias = self._first(pixels_first(x), None, run)
        return channels_first(self._second.with_shortcut(y, bias, pixels_first(self._shortcut(x)), run))


class FusedHead:
    """The last norm, SiLU and convolution."""

    def __init__(self, norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder) -> None:
        self._conv = NormedConv(norm, conv, builder)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        y, bias = self._conv(pixels_first(x), None, run)
        return channels_first(y if bias is None else y + bias)


class FusedUpsample(Upsample):
    """The convolution reads the smaller picture."""

    def __init__(self, module: WanResample, time: Layer | None, tile: Tile) -> None:
        super().__init__(module, time)
        conv = module.resample[1]
        self._weight, self._bias, self._tile = phase_weights(conv.weight), conv.bias, tile

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        if self._time is not None:
            x = self._double_time(x, self._time, run)
        return channels_first(upsampled_conv(pixels_first(x), self._weight, self._bias, self._tile))


class FusedAttention:
    """See diffusers' WanAttentionBlock. Heads of 384 are too wide for kernels that avoid the matrix of weights."""

    def __init__(self, module: WanAttentionBlock) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        m, frames = self._module, x.shape[2]
        images = as_images(x)
        qkv = m.to_qkv(m.norm(images)).flatten(2).transpose(1, 2)
        queries, keys, values = qkv.chunk(3, dim=-1)
        weights = torch.softmax((queries * queries.shape[-1] ** -0.5) @ keys.transpose(1, 2), dim=-1)
        attended = (weights @ values).transpose(1, 2).reshape(images.shape)
        return x + as_video(m.proj(attended), frames)


class FusedBuilder(LayerBuilder):
    """Makes these layers where they apply."""

    def block(self, module: WanResidualBlock) -> Layer:
        if any(conv.kernel_size != (3, 3, 3) or sees_one_frame(conv) for conv in (module.conv1, module.conv2)):
            return super().block(module)
        return FusedResidualBlock(module, self)

    def attention(self, module: WanAttentionBlock) -> Layer:
        return FusedAttention(module)

    def resample(self, module: WanResample) -> Layer:
        tile = _UPSAMPLE_TILES.get(module.resample[1].out_channels)
        if tile is None or not fits(*self.size, module.resample[1].in_channels, tile):
            return super().resample(module)
        time = self.conv(module.time_conv) if module.mode == "upsample3d" else None
        self.double()
        return FusedUpsample(module, time, tile)

    def head(self, norm: nn.Module, activation: nn.Module, conv: WanCausalConv3d) -> list[Layer]:
        if not isinstance(norm, WanRMS_norm) or sees_one_frame(conv):
            return super().head(norm, activation, conv)
        return [FusedHead(norm, conv, self)]


def pixels_first(x: torch.Tensor) -> torch.Tensor:
    """[B, C, t, h, w] -> [B, t, h, w, C], contiguous: without a copy if x is in channels-last order."""
    return x.permute(0, 2, 3, 4, 1).contiguous()


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """[B, t, h, w, C] -> [B, C, t, h, w], a view."""
    return x.permute(0, 4, 1, 2, 3)


def _tiled(conv: WanCausalConv3d, tile: Tile) -> Convolve:
    weight = causal_weights(conv.weight)
    return lambda frames, shortcut: causal_conv(frames, weight, conv.bias, shortcut, tile)


def _narrow(conv: WanCausalConv3d) -> Convolve:
    weight = narrow_weights(conv.weight)

    def convolve(frames: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        y = narrow_conv(frames, weight, conv.bias)
        return y if shortcut is None else y + shortcut

    return convolve


def _by_cudnn(conv: WanCausalConv3d) -> Convolve:
    """Without its bias, which cuDNN would add by a kernel of its own."""

    def convolve(frames: torch.Tensor, shortcut: torch.Tensor | None) -> torch.Tensor:
        assert shortcut is None, "the caller adds it"
        return pixels_first(F.conv3d(channels_first(frames), conv.weight, None, padding=(0, 1, 1)))

    return convolve
