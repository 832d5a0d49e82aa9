"""Owns LoRA weights, merged in place into a network's storage at a scale that may change between ticks.

W = W0 + scale * sum_i(weight_i * B_i A_i), always from a copy of W0: no drift, and addresses in CUDA graphs stay valid.
Independent of file formats and the hub; pipelines/files/lora_keys.py reads files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.core.errors import ModelLayoutError
from pipelines.files.lora_keys import LoraFactors, read_lora

_MAX_LISTED = 6


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One weight changed by LoRAs. base: W0. factors: (A [r, in], B [out, r]) with the file's weight folded into B."""

    weight: torch.Tensor
    base: torch.Tensor
    factors: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @torch.no_grad()
    def merge(self, scale: float) -> None:
        if scale == 0:
            self.weight.copy_(self.base)
            return
        merged = self.base.to(self.factors[0][0].dtype, copy=True)
        for a, b in self.factors:
            merged.add_((b @ a).view(merged.shape), alpha=scale)
        self.weight.copy_(merged)


class MergedLora:
    """The LoRA files of one model as a `LoraControl`.

    The live scale applies to the denoiser. Weights for text encoders are merged once, at the files' own weights:
    prompts are encoded outside of ticks and may be cached, so a live scale could not apply to them consistently.
    """

    def __init__(self, unet: Any, text_models: Sequence[Any], files: Sequence[tuple[Path, float]]) -> None:
        """Merge all files at scale 1. files: local .safetensors files, each with its own weight.

        Raises ModelLayoutError naming keys and shapes that do not match this model.
        """
        networks: dict[str, nn.Module] = {"unet": unet}
        for index, network in enumerate(text_models):
            networks["text_encoder" if index == 0 else f"text_encoder_{index + 1}"] = network
        found: dict[str, dict[str, list[tuple[torch.Tensor, torch.Tensor]]]] = {name: {} for name in networks}
        for file, weight in files:
            for part, modules in read_lora(file, unet.config).items():
                _check_modules(file, part, modules, networks)
                for module, factors in modules.items():
                    pair = _on_device(factors, weight, _weight_of(networks[part], module))
                    found[part].setdefault(module, []).append(pair)
        self._layers = _layers(unet, found.pop("unet"))
        for part, by_module in found.items():
            for layer in _layers(networks[part], by_module):
                layer.merge(1.0)
        self._scale: float | None = None
        self.set_scale(1.0)

    def set_scale(self, scale: float) -> None:
        """Set the denoiser's weights to W0 + scale * delta, in place. Call between ticks only."""
        if scale == self._scale:
            return
        for layer in self._layers:
            layer.merge(scale)
        self._scale = scale


def _layers(network: nn.Module, by_module: Mapping[str, list[tuple[torch.Tensor, torch.Tensor]]]) -> list[_Layer]:
    layers = []
    for module, factors in by_module.items():
        weight = _weight_of(network, module)
        layers.append(_Layer(weight=weight, base=weight.detach().clone(), factors=tuple(factors)))
    return layers


def _weight_of(network: nn.Module, module: str) -> torch.Tensor:
    weight = network.get_submodule(module).weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _on_device(factors: LoraFactors, weight: float, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if target.dtype is torch.float64 else torch.float32
    a = factors.a.to(device=target.device, dtype=dtype).flatten(1)
    b = factors.b.to(device=target.device, dtype=dtype).flatten(1) * (weight * factors.scale)
    return a, b


def _check_modules(
    file: Path, part: str, modules: Mapping[str, LoraFactors], networks: Mapping[str, nn.Module]
) -> None:
    network = networks.get(part)
    known = {} if network is None else dict(network.named_modules())
    unmatched = [f"{part}.{name}" for name in modules if not isinstance(known.get(name), nn.Linear | nn.Conv2d)]
    if unmatched:
        raise ModelLayoutError(
            f"{file} changes layers that this model does not have: {_listed(unmatched)}.",
            "It was made for another kind of model (SD 1.5, SD 2 and SDXL differ): choose one that fits.",
        )
    assert network is not None
    for name, factors in modules.items():
        shape = tuple(_weight_of(network, name).shape)
        if not factors.fits(shape):
            raise ModelLayoutError(
                f"{file}: the LoRA of {part}.{name} has the shapes {tuple(factors.b.shape)} and "
                f"{tuple(factors.a.shape)}, which do not make a weight of shape {shape}.",
                "It was made for another kind of model (SD 1.5, SD 2 and SDXL differ): choose one that fits.",
            )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
