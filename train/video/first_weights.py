"""Owns the weights that the autoencoders begin with: signals keep their size, and layers in time begin as copies.

The stock autoencoder's spatial convolutions see one frame: their weights of the two frames before are zeros, and stay
zeros, as training runs them as pictures (pipelines.video.codecs.wan_layers.FrameConv). Time is the business of its
convolutions between the levels. With all of them a latent sees more than the clips of training hold, and what comes
later in a stream than those is a stranger to the network: 24 dB within 9 frames, 12 dB three latents later.

With PyTorch's own (weights of a third of that variance, random biases) a deep decoder first shows one grey for hundreds
of steps: what the latents say is drowned by the biases. Knows no data.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from torch import Tensor, nn

from pipelines.video.codecs.tiny import TinyVideoAutoencoder
from pipelines.video.codecs.tiny_layers import MemoryBlock, TimeGrow, TimePool

BRANCH_GAIN = 0.2
"""Of what a residual branch adds at first."""
PICTURE_GAIN = 0.3
"""Of the layer that makes pixels: it begins near grey."""


@torch.no_grad()
def begin_stock(vae: AutoencoderKLWan) -> None:
    """Give diffusers' autoencoder its first weights, from torch's default generator."""
    _scale_convolutions(vae, gain=1.0)
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and min(module.kernel_size) > 1:
            module.weight.mul_(math.sqrt(module.kernel_size[0]))
            module.weight[:, :, :-1] = 0
    vae.decoder.conv_out.weight.mul_(PICTURE_GAIN)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            module.conv2.weight.mul_(BRANCH_GAIN)
        elif isinstance(module, WanAttentionBlock):
            module.proj.weight.mul_(BRANCH_GAIN)
        elif isinstance(module, WanResample) and module.mode == "upsample3d":
            _copy_channels(module.time_conv.weight, taps={2: 1.0})
        elif isinstance(module, WanResample) and module.mode == "downsample3d":
            _copy_channels(module.time_conv.weight, taps={1: 0.5, 2: 0.5})


@torch.no_grad()
def begin_tiny(tiny: TinyVideoAutoencoder) -> None:
    """Give the tiny autoencoder its first weights, from torch's default generator."""
    _scale_convolutions(tiny, gain=math.sqrt(2.0))
    picture = tiny.decoder[-1]
    assert isinstance(picture, nn.Conv2d)
    assert picture.bias is not None
    picture.weight.mul_(PICTURE_GAIN)
    picture.bias.fill_(0.5)
    for module in tiny.modules():
        if isinstance(module, MemoryBlock):
            last = module.conv[4]
            assert isinstance(last, nn.Conv2d)
            last.weight.mul_(BRANCH_GAIN)
        elif isinstance(module, TimeGrow):
            _copy_channels(module.conv.weight[..., None], taps={0: 1.0})
        elif isinstance(module, TimePool):
            parts = torch.chunk(module.conv.weight, module.stride, dim=1)
            for part in parts:
                _copy_channels(part[..., None], taps={0: 1 / len(parts)})


def _scale_convolutions(network: nn.Module, *, gain: float) -> None:
    """Normal weights under which a layer's outputs are `gain` times as large as its inputs; no biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, gain / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()


def _copy_channels(weight: Tensor, *, taps: dict[int, float]) -> None:
    """weight [m C, C, t, ...], in place: every one of m groups of outputs is the inputs, summed over taps of time."""
    weight.zero_()
    channels = weight.shape[1]
    eye = torch.eye(channels, device=weight.device, dtype=weight.dtype)
    for group in torch.split(weight, channels):
        for tap, share in taps.items():
            group[:, :, tap].copy_((share * eye)[..., None, None].expand_as(group[:, :, tap]))
