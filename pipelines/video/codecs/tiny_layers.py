"""Owns the tiny causal video autoencoder as a plain module: layers, names and shapes of the published taew2_1 weights.

Independent of streams: each stack takes all frames of a clip or chunk at once, and the past from a memory or as zeros.
Facts from madebyollin/taehv (MIT), which distilled Wan 2.1's autoencoder into a tiny one: latents are those of the
transformer (normalised), pixels are in [0, 1], state names are decoder.N.* and encoder.N.*, N counting every layer.

Internally, frames are time-major, [T * B, C, H, W]: the previous frames are then the same tensor shifted by B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.core.errors import InputError, ModelLayoutError

from .memory import FeatureMemory, Pass

TIME_FACTOR = 4
_POOLS = (2, 2, 1)  # frames merged before each of the encoder's three halvings
_GROWS = (1, 2, 2)  # frames made from one after each stage of the decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyCodecConfig:
    """Sizes; the defaults are those of taew2_1 (9.84 M parameters in the decoder, 1.47 M in the encoder).

    decoder_channels: of the three stages and of the output layer, coarse to fine; encoder_channels: of the input layer
    and the three stages, fine to coarse; patch_size: side in pixels of the patches that the outermost layers take as
    channels. encoder_padding: where a clip of 1 + 4k frames is padded by three frames to groups of four. Published
    weights are used with the last frame repeated at the "end", so that a latent's group extends three frames beyond the
    frames it decodes to; with the first frame repeated at the "front", a group is what its latent decodes to.
    """

    latent_channels: int = 16
    decoder_channels: tuple[int, int, int, int] = (256, 128, 64, 64)
    encoder_channels: tuple[int, int, int, int] = (64, 64, 64, 64)
    blocks_per_stage: int = 3
    patch_size: int = 1
    encoder_padding: Literal["end", "front"] = "end"

    def __post_init__(self) -> None:
        sizes = {"decoder_channels": self.decoder_channels, "encoder_channels": self.encoder_channels}
        for name, widths in sizes.items():
            if len(widths) != 4 or min(widths) < 1:
                raise InputError(f"{name} is {widths}.", "Give four widths of 1 or more.")
        for name in ("latent_channels", "blocks_per_stage", "patch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}.", "Use 1 or more.")
        if self.encoder_padding not in ("end", "front"):
            raise InputError(f"encoder_padding is {self.encoder_padding!r}.", 'Use "end" or "front".')


class SoftClamp(nn.Module):
    """Limits latents to (-3, 3): 3 tanh(x / 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] -> the same shape."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the frame before it, with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """x [T * B, C, H, W]; before [B, C, H, W]: the block's input one frame earlier."""
        past = torch.cat((before, x[: -before.shape[0]]))
        return F.relu(self.conv(torch.cat((x, past), dim=1)) + x)


class TimePool(nn.Module):
    """Merges `stride` frames into one by a 1×1 convolution over all their channels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels * stride, channels, 1, bias=False)

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """[T * B, C, H, W] -> [T / stride * B, C, H, W]."""
        if self.stride > 1:
            channels, height, width = x.shape[1:]
            x = x.view(-1, self.stride, batch, channels, height, width)
            x = x.permute(0, 2, 4, 5, 1, 3).reshape(-1, height, width, self.stride * channels).permute(0, 3, 1, 2)
        result: torch.Tensor = self.conv(x)
        return result


class TimeGrow(nn.Module):
    """Doubles the frame size (nearest), and makes `stride` frames from one by a 1×1 convolution.

    The convolution runs first, unlike in the published order of layers: as it is pointwise, copying its result equals
    convolving copies, at a quarter of the work.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: torch.Tensor, batch: int) -> torch.Tensor:
        """[T * B, C, h, w] -> [T * stride * B, C, 2h, 2w]."""
        x = self.conv(x)
        if self.stride > 1:
            channels, height, width = x.shape[1] // self.stride, *x.shape[2:]
            if batch == 1 and torch.compiler.is_exporting():  # the same without a transpose of six axes
                return F.interpolate(x.reshape(-1, channels, height, width), scale_factor=2.0, mode="nearest")
            x = x.view(-1, batch, self.stride, channels, height, width)
            x = x.permute(0, 2, 1, 4, 5, 3).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class LayerStack(nn.Sequential):
    """An encoder or decoder: its layers in the order of their published numbers."""

    def reserve(self, memory: FeatureMemory, height: int, width: int, *, channels_last: bool) -> tuple[int, ...]:
        """Add a state tensor for each MemoryBlock, in order; return the slots. height, width: of the input."""
        slots = []
        for layer in self:
            if isinstance(layer, MemoryBlock):
                slots.append(memory.add((layer.channels, height, width), channels_last=channels_last))
            elif isinstance(layer, TimeGrow):
                height, width = height * 2, width * 2
            elif isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                height, width = height // 2, width // 2
        return tuple(slots)

    def forward(  # type: ignore[override]  # nn.Sequential's takes one tensor; this one also takes the state
        self, x: torch.Tensor, *, batch: int, run: Pass | None = None, slots: Sequence[int] = ()
    ) -> torch.Tensor:
        """x: [T * B, C, H, W], time-major. run: None: a whole clip from its beginning, stateless and differentiable.
        slots: from `reserve`.
        """
        remaining = iter(slots)
        for layer in self:
            if isinstance(layer, MemoryBlock):
                x = layer(x, x.new_zeros(x[:batch].shape)) if run is None else _remember(layer, x, run, next(remaining))
            elif isinstance(layer, TimePool | TimeGrow):
                x = layer(x, batch)
            else:
                x = layer(x)
        return x


def _remember(layer: MemoryBlock, x: torch.Tensor, run: Pass, slot: int) -> torch.Tensor:
    before = run.memory.read(slot, run.rows)
    result: torch.Tensor = layer(x, before)
    run.memory.write(slot, run.rows, x[-before.shape[0] :])
    return result


def make_encoder(config: TinyCodecConfig) -> LayerStack:
    """Build the encoder: frames [F * B, 3 p², H / p, W / p] -> latents [F / 4 * B, C, h, w]; p: patch_size."""
    stem, *stages = config.encoder_channels
    layers: list[nn.Module] = [_conv(3 * config.patch_size**2, stem), nn.ReLU()]
    width = stem
    for stage, pool in zip(stages, _POOLS, strict=True):
        layers += [TimePool(width, pool), _conv(width, stage, stride=2, bias=False)]
        layers += [MemoryBlock(stage) for _ in range(config.blocks_per_stage)]
        width = stage
    return LayerStack(*layers, _conv(width, config.latent_channels))


def make_decoder(config: TinyCodecConfig) -> LayerStack:
    """Build the decoder: latents [n * B, C, h, w] -> frames [4 n * B, 3 p², H / p, W / p]; p: patch_size."""
    *stages, last = config.decoder_channels
    layers: list[nn.Module] = [SoftClamp(), _conv(config.latent_channels, stages[0]), nn.ReLU()]
    for stage, following, grow in zip(stages, [*stages[1:], last], _GROWS, strict=True):
        layers += [MemoryBlock(stage) for _ in range(config.blocks_per_stage)]
        # The published stack upsamples in a separate layer, whose number is kept here.
        layers += [nn.Identity(), TimeGrow(stage, grow), _conv(stage, following, bias=False)]
    return LayerStack(*layers, nn.ReLU(), _conv(last, 3 * config.patch_size**2))


def infer_config(
    state: Mapping[str, torch.Tensor], encoder_padding: Literal["end", "front"] = "end"
) -> TinyCodecConfig:
    """Infer the configuration from a state dict's names and shapes. Raises ModelLayoutError."""
    blocks, rest = divmod(sum(name.startswith("decoder.") and name.endswith(".conv.0.weight") for name in state), 3)
    try:
        if rest or not blocks:
            raise KeyError("decoder.3.conv.0.weight")
        decoder = [3 + stage * (blocks + 3) + blocks + 2 for stage in range(3)]
        encoder = [3 + stage * (blocks + 2) for stage in range(3)]
        return TinyCodecConfig(
            latent_channels=state["decoder.1.weight"].shape[1],
            decoder_channels=_four_widths(
                [state["decoder.1.weight"], *(state[f"decoder.{n}.weight"] for n in decoder)]
            ),
            encoder_channels=_four_widths(
                [state["encoder.0.weight"], *(state[f"encoder.{n}.weight"] for n in encoder)]
            ),
            blocks_per_stage=blocks,
            patch_size=math.isqrt(state["encoder.0.weight"].shape[1] // 3),
            encoder_padding=encoder_padding,
        )
    except KeyError as error:
        raise ModelLayoutError(
            f"These are not the weights of a tiny video autoencoder: {error.args[0]} is missing.",
            "Use a file of the taew2_1 kind, with names decoder.N.* and encoder.N.*.",
        ) from None


def _four_widths(weights: Sequence[torch.Tensor]) -> tuple[int, int, int, int]:
    a, b, c, d = (weight.shape[0] for weight in weights)
    return a, b, c, d


def _conv(inputs: int, outputs: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
