"""Owns the parts of an image model: denoiser, encoder and decoder as modules of positional tensors, for compilers.

Each computes what the plain runtime computes, casts and scaling included. Independent of backends and engines.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipelines.core.parts import Part, Tensors

from .model import Condition

REQUIRED = ("latents", "timestep", "embeds")
"""Inputs that every denoiser has; then `OPTIONAL` ones, then those of conditioners, by name."""
OPTIONAL = ("pooled", "time_ids")


class DenoisePart(nn.Module):
    """A `Denoiser` without the handles of ring rows: (latents, timestep, embeds, ...) -> x0. names: of its inputs."""

    def __init__(self, denoiser: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        assert tuple(names[: len(REQUIRED)]) == REQUIRED, names
        self.denoiser, self._names = denoiser, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        return (self.denoiser(*unpacked(self._names, inputs)),)


def unpacked(names: Sequence[str], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    """Return latents, timestep and condition from the positional inputs of a part. names: of the inputs."""
    given = dict(zip(names, inputs, strict=True))
    latents, timestep = given.pop("latents"), given.pop("timestep")
    condition = Condition(
        embeds=given.pop("embeds"),
        pooled=given.pop("pooled", None),
        time_ids=given.pop("time_ids", None),
        row=timestep,  # handles, which no network reads
        step=timestep,
        inputs=given,
    )
    return latents, timestep, condition


class EncodePart(nn.Module):
    """A codec's encoder: images [N, 3, H, W] float32 in [-1, 1] -> latents."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, images: torch.Tensor) -> Tensors:
        return (self.codec.encode(images),)  # type: ignore[operator]


class DecodePart(nn.Module):
    """A codec's decoder: latents [N, C, h, w] float32 -> images in [-1, 1]."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, latents: torch.Tensor) -> Tensors:
        return (self.codec.decode(latents),)  # type: ignore[operator]


def denoise_inputs(latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> dict[str, torch.Tensor]:
    """Return the inputs of the denoise part, by name and in order, of one call of a `Denoiser`."""
    optional = {"pooled": condition.pooled, "time_ids": condition.time_ids}
    return {
        "latents": latents,
        "timestep": timestep,
        "embeds": condition.embeds,
        **{name: value for name, value in optional.items() if value is not None},
        **{name: condition.inputs[name] for name in sorted(condition.inputs)},
    }


def denoise_part(denoiser: nn.Module, inputs: dict[str, torch.Tensor]) -> Part:
    """Return the denoise part at the shapes of `inputs`, which `denoise_inputs` made."""
    return Part(name="denoise", module=DenoisePart(denoiser, tuple(inputs)), inputs=inputs)


def encode_part(codec: nn.Module, images: torch.Tensor) -> Part:
    """Return the encoder at the shape of images [N, 3, H, W]."""
    return Part(name="encode", module=EncodePart(codec), inputs={"images": images})


def decode_part(codec: nn.Module, latents: torch.Tensor) -> Part:
    """Return the decoder at the shape of latents [N, C, h, w]."""
    return Part(name="decode", module=DecodePart(codec), inputs={"latents": latents})
