"""Owns which constants of an exported graph are which weights of the module: what a refit needs to know.

The exporter keeps most weights under their names, and transposes or reshapes others into constants with names of its
own; those are found by their values. Independent of TensorRT.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

_Fingerprint: TypeAlias = tuple[torch.dtype, int, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """How a constant is made from a weight: permuted by `order`, then reshaped to `shape`.

    parameter: its name in the module. digest: of the weight's values at export.
    """

    parameter: str
    order: tuple[int, ...]
    shape: tuple[int, ...]
    digest: str

    def constant(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the constant that the graph has for this weight, contiguous."""
        return weight.detach().permute(self.order).reshape(self.shape).contiguous()

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> WeightSource:
        """Return the source of a record of `as_json`."""
        return cls(
            parameter=str(record["parameter"]),
            order=tuple(record["order"]),
            shape=tuple(record["shape"]),
            digest=str(record["digest"]),
        )


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, each tensor once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def digest_of(tensor: torch.Tensor) -> str:
    """Return 32 hexadecimal digits of the sha256 of a tensor's values, whatever its strides and its device."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()[:32]


def find_sources(constants: Mapping[str, Any], module: nn.Module) -> dict[str, WeightSource]:
    """Return the source of each constant that is a weight of the module. constants: tensors of ONNX by name.

    A constant without a name of a weight whose values fit no weight, or several, or one in several ways (all zeros),
    has no source: such weights cannot be changed in a plan.
    """
    weights = weights_of(module)
    digests = {name: digest_of(weight) for name, weight in weights.items()}
    sources = {}
    for name in constants.keys() & weights.keys():
        shape, order = tuple(weights[name].shape), tuple(range(weights[name].dim()))
        sources[name] = WeightSource(parameter=name, order=order, shape=shape, digest=digests[name])
    candidates: dict[_Fingerprint, list[str]] = {}
    for name, weight in weights.items():
        if weight.dim() > 1 and weight.is_floating_point():
            candidates.setdefault(_fingerprint(weight), []).append(name)
    for name in sorted(constants.keys() - sources.keys()):
        constant = _as_torch(constants[name])
        if constant is None:
            continue
        found = {}
        for parameter in candidates.get(_fingerprint(constant), ()):
            orders = _orders(constant, weights[parameter])
            found.update({(parameter, order): digests[parameter] for order in orders})
        if len(found) == 1:
            ((parameter, order), digest) = found.popitem()
            shape = tuple(constant.shape)
            sources[name] = WeightSource(parameter=parameter, order=order, shape=shape, digest=digest)
    return sources


def changed_constants(
    sources: Mapping[str, WeightSource], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the constants whose weights differ from those at export, by the constants' names."""
    digests: dict[str, str] = {}
    changed = {}
    for name, source in sources.items():
        weight = weights[source.parameter]
        if source.parameter not in digests:
            digests[source.parameter] = digest_of(weight)
        if digests[source.parameter] != source.digest:
            changed[name] = source.constant(weight)
    return changed


def _as_torch(constant: Any) -> torch.Tensor | None:
    """Return a constant of at least two axes as a tensor; None for others, and for dtypes that PyTorch lacks."""
    if len(constant.shape) < 2:
        return None
    array = constant.numpy()
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy()) if array.dtype.name in ("float16", "float32", "float64") else None


def _fingerprint(tensor: torch.Tensor) -> _Fingerprint:
    """What does not change when a tensor is transposed and reshaped, and differs between nearly all weights."""
    low, high = torch.aminmax(tensor.detach())
    return tensor.dtype, tensor.numel(), float(low), float(high)


def _orders(constant: torch.Tensor, weight: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the orders of the weight's axes that give the constant when reshaped, one of those that do the same."""
    values, found = weight.detach().cpu(), {}
    places = torch.arange(weight.numel()).view(weight.shape)
    for order in itertools.permutations(range(weight.dim())):
        if torch.equal(values.permute(order).reshape(constant.shape), constant):
            found[digest_of(places.permute(order).reshape(constant.shape))] = order
    return list(found.values())
