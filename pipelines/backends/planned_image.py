"""Owns an image runtime whose denoiser and codec run compiled as soon as their plans are ready.

Independent of recipes and engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipelines.image.parts import decode_part, denoise_inputs, denoise_part, encode_part

from .background import PlanPreparation
from .planned import MakePart, PlannedCalls
from .recipe import Recipe

if TYPE_CHECKING:
    from pipelines.image.model import Condition, ImageNetworks, ImageRuntime, LatentCodec


class PlannedDenoiser:
    """A `Denoiser` over the calls of its part."""

    def __init__(self, calls: PlannedCalls) -> None:
        self._calls = calls

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`."""
        return self._calls(denoise_inputs(latents, timestep, condition))[0]


class PlannedCodec:
    """A `LatentCodec` over the calls of its parts."""

    def __init__(self, codec: LatentCodec, encode: PlannedCalls, decode: PlannedCalls) -> None:
        self.latent_channels, self.factor, self.margin = codec.latent_channels, codec.factor, codec.margin
        self._encode, self._decode = encode, decode

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        return self._encode({"images": images})[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.LatentCodec`."""
        return self._decode({"latents": latents})[0]


def planned_image(
    networks: ImageNetworks,
    plain: ImageRuntime,
    recipes: Mapping[str, Recipe],
    *,
    builds: bool = True,
    plain_threads: int = 0,
) -> ImageRuntime:
    """Return a runtime that makes and uses plans of its parts. plain: what runs until they are ready.

    recipes: by name of the part. builds: make the plans that are not stored. plain_threads: see `PlannedCalls`. Without
    an origin the runtime is `plain`.
    """
    if networks.origin is None:
        return plain
    denoiser, codec = plain.denoiser, plain.codec
    assert isinstance(denoiser, nn.Module)
    assert isinstance(codec, nn.Module)
    preparation = PlanPreparation(
        recipes,
        backend=plain.backend,
        origin=networks.origin,
        device=networks.device,
        builds=builds,
        notice=networks.notice,
    )

    def calls(name: str, make_part: MakePart) -> PlannedCalls:
        return preparation.calls(name, make_part, plain_threads=plain_threads)

    return replace(
        plain,
        windows=None,
        denoiser=PlannedDenoiser(calls("denoise", lambda inputs: denoise_part(denoiser, inputs))),
        codec=PlannedCodec(
            plain.codec,
            calls("encode", lambda inputs: encode_part(codec, inputs["images"])),
            calls("decode", lambda inputs: decode_part(codec, inputs["latents"])),
        ),
        preparation=preparation,
    )
