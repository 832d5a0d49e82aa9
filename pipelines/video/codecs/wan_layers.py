"""Owns the streaming passes over the modules of diffusers' AutoencoderKLWan: same weights, own feature memory.

Independent of normalisation, latent counts and the range of pixels. A pass takes any number of frames: the state of a
causal convolution is its last two input frames (feature cache of Wan 2.1, arXiv 2503.20314). Two layers are not plain
causal convolutions:

- Time upsampling doubles every latent except the first of a stream, which bypasses its convolution and is not stored:
  the history of the second latent is zeros, not the first latent.
- Time downsampling passes the first frame through unchanged, then takes frames in pairs with one frame of history.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanDecoder3d,
    WanEncoder3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
)
from torch import nn

from .memory import FeatureMemory, Pass

HISTORY_FRAMES = 2  # of a convolution over three frames


Layer = Callable[[torch.Tensor, Pass], torch.Tensor]  # x [B, C, t, h, w] -> [B, C', t', h', w']


class LayerBuilder:
    """Makes layers in order, tracks their frame size, and allocates their state in the memory."""

    def __init__(self, memory: FeatureMemory, *, height: int, width: int, channels_last: bool) -> None:
        self._memory = memory
        self._height = height
        self._width = width
        self._channels_last = channels_last

    def slot(self, channels: int, frames: int) -> int:
        """Allocate the state of a layer with so many channels, at the present frame size."""
        shape = (channels, frames, self._height, self._width)
        return self._memory.add(shape, channels_last=self._channels_last)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a frame at this place of the network."""
        return self._height, self._width

    def double(self) -> None:
        """Continue with frames of twice the size."""
        self._height, self._width = self._height * 2, self._width * 2

    def conv(self, module: WanCausalConv3d) -> Layer:
        """Make a causal convolution over one or three frames; a spatial one whose weights for past frames are all zero
        has no state.
        """
        if module.kernel_size[0] == 1:
            return PlainConv(module)
        if sees_one_frame(module):
            return FrameConv(module)
        return CausalConv(module, self.slot(module.in_channels, HISTORY_FRAMES))

    def block(self, module: WanResidualBlock) -> Layer:
        """Make two convolutions with a shortcut."""
        return ResidualBlock(module, self.conv(module.conv1), self.conv(module.conv2))

    def resample(self, module: WanResample) -> Layer:
        """Make a layer that halves or doubles the frame size, and time if the module has a time convolution."""
        if module.mode == "upsample3d":
            time: Layer | None = self.conv(module.time_conv)
            self.double()
            return Upsample(module, time)
        if module.mode == "upsample2d":
            self.double()
            return Upsample(module, None)
        self._height, self._width = self._height // 2, self._width // 2
        slot = self.slot(module.dim, 1) if module.mode == "downsample3d" else None
        return Downsample(module, slot)

    def attention(self, module: WanAttentionBlock) -> Layer:
        """Make the attention within each frame."""
        return Stateless(module)

    def head(self, norm: nn.Module, activation: nn.Module, conv: WanCausalConv3d) -> list[Layer]:
        """Make the last norm, activation and convolution."""
        return [Stateless(norm), Stateless(activation), self.conv(conv)]

    def any(self, module: nn.Module) -> Layer:
        """Make the layer of any module in the block lists of the encoder and decoder."""
        if isinstance(module, WanResidualBlock):
            return self.block(module)
        if isinstance(module, WanAttentionBlock):
            return self.attention(module)
        assert isinstance(module, WanResample), type(module)
        return self.resample(module)


def sees_one_frame(module: WanCausalConv3d) -> bool:
    """Whether a spatial convolution's weights for past frames are all zero. Not so for convolutions in time alone,
    whose zeros training may still change."""
    weight = module.weight
    return module.kernel_size[1] > 1 and not weight.is_meta and not weight[:, :, :-1].any()


class Stateless:
    """A module that processes each frame separately."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        result: torch.Tensor = self._module(x)
        return result


class PlainConv:
    """A convolution over one frame."""

    def __init__(self, module: WanCausalConv3d) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        return F.conv3d(x, self._module.weight, self._module.bias)


class FrameConv:
    """A convolution over three frames whose weights for the two past ones are zero: a 2D convolution of each frame."""

    def __init__(self, module: WanCausalConv3d) -> None:
        self._module = module
        self._padding = (module.kernel_size[1] // 2, module.kernel_size[2] // 2)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        m = self._module
        return as_video(F.conv2d(as_images(x), m.weight[:, :, -1], m.bias, padding=self._padding), x.shape[2])


class CausalConv:
    """A convolution over three frames; the two before the input come from the memory, zeros at a stream's start."""

    def __init__(self, module: WanCausalConv3d, slot: int) -> None:
        self._module = module
        self._slot = slot
        self._padding = (0, module.kernel_size[1] // 2, module.kernel_size[2] // 2)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        frames = torch.cat((run.memory.read(self._slot, run.rows), x), dim=2)
        run.memory.write(self._slot, run.rows, frames[:, :, -HISTORY_FRAMES:])
        return F.conv3d(frames, self._module.weight, self._module.bias, padding=self._padding)


class ResidualBlock:
    """Norm, activation and convolution, twice, with a shortcut."""

    def __init__(self, module: WanResidualBlock, conv1: Layer, conv2: Layer) -> None:
        self._module = module
        self._conv1 = conv1
        self._conv2 = conv2
        self._shortcut: Layer = Stateless(module.conv_shortcut)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        m = self._module
        y = self._conv1(m.nonlinearity(m.norm1(x)), run)
        y = self._conv2(m.nonlinearity(m.norm2(y)), run)
        return y + self._shortcut(x, run)


class Upsample:
    """Doubles the frame size and, with a time convolution, the number of frames, except a stream's first frame."""

    def __init__(self, module: WanResample, time: Layer | None) -> None:
        self._conv = module.resample[1]
        self._time = time

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        if self._time is not None:
            x = self._double_time(x, self._time, run)
        frames = x.shape[2]
        x = F.interpolate(as_images(x), scale_factor=2.0, mode="nearest-exact")
        return as_video(self._conv(x), frames)

    @staticmethod
    def _double_time(x: torch.Tensor, time: Layer, run: Pass) -> torch.Tensor:
        rest = x[:, :, 1:] if run.first else x
        if not rest.shape[2]:
            return x
        channels, frames = rest.shape[1:3]
        y = time(rest, run)  # the two halves of its channels are two frames
        y = torch.stack((y[:, :channels], y[:, channels:]), dim=3).flatten(2, 3)
        assert y.shape[2] == 2 * frames, y.shape
        return torch.cat((x[:, :, :1], y), dim=2) if run.first else y


class Downsample:
    """Halves the frame size and, if it has state, the number of frames, except a stream's first frame."""

    def __init__(self, module: WanResample, slot: int | None) -> None:
        self._module = module
        self._slot = slot

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        x = as_video(self._module.resample(as_images(x)), x.shape[2])
        return x if self._slot is None else self._halve_time(x, self._slot, run)

    def _halve_time(self, x: torch.Tensor, slot: int, run: Pass) -> torch.Tensor:
        time = self._module.time_conv
        frames = x if run.first else torch.cat((run.memory.read(slot, run.rows), x), dim=2)
        assert frames.shape[2] % 2 == 1, frames.shape
        run.memory.write(slot, run.rows, frames[:, :, -1:])
        if frames.shape[2] == 1:
            return x
        y = F.conv3d(frames, time.weight, time.bias, stride=time.stride)
        return torch.cat((x[:, :, :1], y), dim=2) if run.first else y


class Program:
    """Runs layers one after another."""

    def __init__(self, layers: list[Layer]) -> None:
        self._layers = tuple(layers)

    def __call__(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        for layer in self._layers:
            x = layer(x, run)
        return x


def decoder_program(vae: AutoencoderKLWan, builder: LayerBuilder) -> Program:
    """Build post_quant_conv and the decoder: raw latents -> pixels, about [-1, 1]. builder: at the latents' size."""
    decoder: WanDecoder3d = vae.decoder
    layers = [builder.conv(vae.post_quant_conv), builder.conv(decoder.conv_in), *_middle(decoder.mid_block, builder)]
    for block in decoder.up_blocks:
        layers += [builder.block(resnet) for resnet in block.resnets]
        layers += [builder.resample(sampler) for sampler in block.upsamplers or ()]
    return Program([*layers, *builder.head(decoder.norm_out, decoder.nonlinearity, decoder.conv_out)])


def encoder_program(vae: AutoencoderKLWan, builder: LayerBuilder) -> Program:
    """Build the encoder and quant_conv: pixels in [-1, 1] -> mean and log variance. builder: at the pixels' size."""
    encoder: WanEncoder3d = vae.encoder
    layers = [builder.conv(encoder.conv_in), *(builder.any(module) for module in encoder.down_blocks)]
    layers += _middle(encoder.mid_block, builder)
    head = builder.head(encoder.norm_out, encoder.nonlinearity, encoder.conv_out)
    return Program([*layers, *head, builder.conv(vae.quant_conv)])


def _middle(block: WanMidBlock, builder: LayerBuilder) -> list[Layer]:
    layers: list[Layer] = [builder.any(block.resnets[0])]
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        layers += [builder.attention(attention), builder.any(resnet)]
    return layers


def as_images(x: torch.Tensor) -> torch.Tensor:
    """[B, C, t, h, w] -> [B * t, C, h, w]."""
    return x.transpose(1, 2).flatten(0, 1)


def as_video(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[B * t, C, h, w] -> [B, C, t, h, w]."""
    return x.view(-1, frames, *x.shape[1:]).transpose(1, 2)
