"""Owns the Wan decoder's layers over kernels of its own, for CUDA: the same weights, memory and results up to rounding.

A norm and SiLU are one kernel, which writes what the next convolution reads. Residual blocks' convolutions are those of
wan_winograd.py where its tiles fit, which compute two frames at a time; the last one and those after upsampling, which
read the smaller picture, are those of wan_triton.py. The others are cuDNN's. Independent of normalisation and streams.
"""

from __future__ import annotations

from typing import Protocol

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
    fits,
    narrow_conv,
    narrow_weights,
    phase_weights,
    upsampled_conv,
)
from .wan_winograd import PairTile, norm_pairs, pair_conv, pair_weights, shared_memory_of, shortened
from .wan_winograd import fits as fits_pairs

_PAIR_TILES = (PairTile(128, 32, 128, 64, 8, 4), PairTile(128, 32, 64, 32, 4, 4))
"""The first that fits is taken. Fastest of those tried on an H200 for 192 channels at 240×416 and 96 at 480×832."""
_NARROW = 8
"""Up to how many output channels a convolution is one product whose results are gathered."""
_UPSAMPLE_TILES = {96: Tile(4, 32, 32, 64, 32, 4, 4), 192: Tile(4, 16, 64, 128, 64, 8, 3)}


class NormedConv(Protocol):
    """Norm, SiLU and a causal convolution over three frames."""

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, shortcut: torch.Tensor | None, run: Pass
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, t, h, w, C] plus bias -> [B, t, h, w, N] plus the shortcut of that shape, and a bias to be added to it.

        Never both a shortcut and a bias that is left to be added.
        """


class PairedConv:
    """Two frames at a time."""

    def __init__(self, norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder, tile: PairTile) -> None:
        self._gamma = norm.gamma.flatten()
        self._slot = builder.slot(conv.in_channels, HISTORY_FRAMES)
        self._weight, self._bias = pair_weights(conv.weight), conv.bias
        device = conv.weight.device
        self._tile = shortened(tile, shared_memory_of(device)) if device.type == "cuda" else tile

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, shortcut: torch.Tensor | None, run: Pass
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `NormedConv`."""
        past = run.memory.read(self._slot, run.rows)
        sums = norm_pairs(x if bias is None else x + bias, self._gamma, pixels_first(past))
        if run.rows is not None:
            run.memory.write(self._slot, run.rows, past)
        return pair_conv(sums, self._weight, self._bias, shortcut, x.shape[1], self._tile), None


class UnpairedConv:
    """One frame at a time, behind the past ones."""

    def __init__(self, norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder) -> None:
        self._gamma = norm.gamma.flatten()
        self._slot = builder.slot(conv.in_channels, HISTORY_FRAMES)
        self._narrow = narrow_weights(conv.weight) if conv.out_channels <= _NARROW else None
        self._weight, self._bias = conv.weight, conv.bias

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, shortcut: torch.Tensor | None, run: Pass
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `NormedConv`. cuDNN would add its bias by a kernel of its own."""
        frames = self._frames(x, bias, run)
        if self._narrow is not None:
            y = narrow_conv(frames, self._narrow, self._bias)
            return (y if shortcut is None else y + shortcut), None
        y = pixels_first(F.conv3d(channels_first(frames), self._weight, None, padding=(0, 1, 1)))
        if shortcut is None:
            return y, self._bias
        return add_norm_silu(y, self._bias, shortcut, None, None, keep=True), None

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
        self._first = _normed_conv(module.norm1, module.conv1, builder)
        self._second = _normed_conv(module.norm2, module.conv2, builder)
        self._shortcut = module.conv_shortcut

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        y, bias = self._first(pixels_first(x), None, None, run)
        y, _ = self._second(y, bias, pixels_first(self._shortcut(x)), run)
        return channels_first(y)


class FusedHead:
    """The last norm, SiLU and convolution."""

    def __init__(self, norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder) -> None:
        self._conv = _normed_conv(norm, conv, builder)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        y, bias = self._conv(pixels_first(x), None, None, run)
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
        if tile is None or not fits(module.resample[1].in_channels, tile):
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


def _normed_conv(norm: WanRMS_norm, conv: WanCausalConv3d, builder: LayerBuilder) -> NormedConv:
    for tile in _PAIR_TILES:
        if fits_pairs(conv.in_channels, conv.out_channels, tile):
            return PairedConv(norm, conv, builder, tile)
    return UnpairedConv(norm, conv, builder)
