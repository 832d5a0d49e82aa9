"""Owns the initialisation of the autoencoders: signal variance is preserved, and temporal layers begin as copies.

The stock autoencoder's spatial convolutions see one frame: their weights for the two previous frames are zeros, and
stay zeros, as training runs them on single pictures (pipelines.video.codecs.wan_layers.FrameConv). Only the
convolutions between levels work in time. If all did, a latent's receptive field would exceed the training clips, and
later latents of a stream would be out of distribution: 24 dB within 9 frames, 12 dB three latents later.

With PyTorch's default (a third of that variance, random biases) a deep decoder outputs uniform grey for hundreds of
steps: the biases drown the latents.
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
"""Initial gain of a residual branch."""
PICTURE_GAIN = 0.3
"""Gain of the output layer, which begins near grey."""


@torch.no_grad()
def begin_stock(vae: AutoencoderKLWan) -> None:
    """Initialise diffusers' autoencoder, from torch's default generator."""
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
    """Initialise the tiny autoencoder, from torch's default generator."""
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
    """Normal weights that scale the signal by `gain`; zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, gain / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()


def _copy_channels(weight: Tensor, *, taps: dict[int, float]) -> None:
    """weight [m C, C, t, ...], in place: each of m groups of outputs copies the inputs, summed over temporal taps."""
    weight.zero_()
    channels = weight.shape[1]
    eye = torch.eye(channels, device=weight.device, dtype=weight.dtype)
    for group in torch.split(weight, channels):
        for tap, share in taps.items():
            group[:, :, tap].copy_((share * eye)[..., None, None].expand_as(group[:, :, tap]))
