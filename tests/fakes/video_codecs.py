"""Tiny random video autoencoders, and a plain implementation of the tiny kind over its published weight names.

The plain decoder and encoder run frame by frame and layer by layer in the published order. Independent of the code
under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from pipelines.video.codecs.tiny import TinyVideoAutoencoder
from pipelines.video.codecs.tiny_layers import TinyCodecConfig

MEAN, STD = (0.3, -0.7, 0.1, 1.2), (1.5, 0.4, 2.5, 0.8)


def wan_vae(dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Return an AutoencoderKLWan with 4 base channels (Wan 2.1: 96), random weights, non-trivial means and
    deviations."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vae = AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=list(MEAN), latents_std=list(STD))
    return nn.Module.to(vae.eval(), dtype)


def per_channel(values: tuple[float, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return `values` as [1, C, 1, 1, 1]."""
    return torch.tensor(values, dtype=dtype).view(1, -1, 1, 1, 1)


@torch.no_grad()
def stock_decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decode a whole clip of normalised latents by diffusers' own code, to [0, 1]."""
    raw = latents * per_channel(STD, latents.dtype) + per_channel(MEAN, latents.dtype)
    return (vae.decode(raw).sample + 1) / 2


@torch.no_grad()
def stock_encode(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """Encode a whole clip of pixels in [0, 1] by diffusers' own code, to normalised latents."""
    raw = vae.encode(pixels * 2 - 1).latent_dist.mode()
    return (raw - per_channel(MEAN, pixels.dtype)) / per_channel(STD, pixels.dtype)


def tiny_autoencoder(**options: object) -> TinyVideoAutoencoder:
    """Return a narrow tiny video autoencoder with random weights whose pixels are centred on 0.5."""
    widths = {"latent_channels": 4, "decoder_channels": (16, 12, 8, 6), "encoder_channels": (6, 8, 10, 12)}
    with torch.random.fork_rng():
        torch.manual_seed(6)
        module = TinyVideoAutoencoder(TinyCodecConfig(**{**widths, **options}))  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() == 4:
                    parameter.mul_(1.8)
            list(module.decoder.parameters())[-1].add_(0.5)
    return module.eval()


Weights = Mapping[str, torch.Tensor]


class PlainTiny:
    """The published arithmetic, one frame [B, C, H, W] at a time."""

    def __init__(self, state: Weights, *, blocks: int = 3) -> None:
        self.state = state
        self.blocks = blocks
        self.memory: dict[str, torch.Tensor] = {}

    def conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride=stride, padding=weight.shape[-1] // 2)

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        past = self.memory.get(name, torch.zeros_like(x))
        self.memory[name] = x
        y = torch.relu(self.conv(f"{name}.conv.0", torch.cat((x, past), 1)))
        y = torch.relu(self.conv(f"{name}.conv.2", y))
        return torch.relu(self.conv(f"{name}.conv.4", y) + x)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode [B, C, n, h, w] to [B, 3, 4n - 3, H, W]."""
        raw = [frame for latent in latents.unbind(2) for frame in self._decode_one(latent)]
        return torch.stack(raw[3:], 2)

    def _decode_one(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        frames = [torch.relu(self.conv("decoder.1", 3 * torch.tanh(x / 3)))]
        number = 3
        for grow in (1, 2, 2):
            for _ in range(self.blocks):
                frames = [self.block(f"decoder.{number}", frame) for frame in frames]
                number += 1
            frames = [frame.repeat_interleave(2, -1).repeat_interleave(2, -2) for frame in frames]
            frames = [part for f in frames for part in self.conv(f"decoder.{number + 1}.conv", f).chunk(grow, 1)]
            frames = [self.conv(f"decoder.{number + 2}", frame) for frame in frames]
            number += 3
        for frame in frames:
            yield self.conv(f"decoder.{number + 1}", torch.relu(frame))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode [B, 3, 4n, H, W] to [B, C, n, h, w]."""
        frames = [torch.relu(self.conv("encoder.0", frame)) for frame in pixels.unbind(2)]
        number = 2
        for pool in (2, 2, 1):
            groups = [torch.cat(frames[i : i + pool], 1) for i in range(0, len(frames), pool)]
            frames = [self.conv(f"encoder.{number}.conv", group) for group in groups]
            frames = [self.conv(f"encoder.{number + 1}", frame, 2) for frame in frames]
            number += 2
            for _ in range(self.blocks):
                frames = [self.block(f"encoder.{number}", frame) for frame in frames]
                number += 1
        return torch.stack([self.conv(f"encoder.{number}", frame) for frame in frames], 2)
