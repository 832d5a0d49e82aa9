"""Owns the analytic measure of a receptive field: runs a module on tensors without data and follows each operation.

A `TorchDispatchMode` sees what PyTorch really computes, so that any module works whose operations are in the table
below; one that mixes all positions (normalisation over the picture, attention) makes the field unbounded. Independent
of what the module is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .receptive import ReceptiveField, Unbounded, field_of

_Ints = npt.NDArray[np.int64]
_POINTWISE = frozenset(
    """
    relu relu_ silu silu_ gelu tanh sigmoid mish leaky_relu hardtanh hardtanh_ elu add add_ sub sub_ mul mul_
    div div_ neg clamp clamp_ pow sqrt exp clone contiguous _to_copy detach cat alias native_dropout
    """.split()  # noqa: SIM905
)
_FLATTENING = frozenset(
    """
    view _unsafe_view reshape flatten unflatten permute transpose t unsqueeze squeeze expand mm addmm linear
    native_layer_norm split chunk slice select unbind
    """.split()  # noqa: SIM905
)
"""After these, positions are no longer where the walk looks for them."""
_MIXING = frozenset(
    """
    native_group_norm native_batch_norm mean sum var var_mean _softmax softmax bmm
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable amax max
    """.split()  # noqa: SIM905
)


class UnknownOperationError(Exception):
    """The reach of an operation is not known; measure by perturbation instead."""


class _MixesError(Exception):
    """An operation mixes all positions."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """For each position along the first spatial axis, the first and last input that it depends on."""

    first: _Ints
    last: _Ints

    def joined(self, other: _Reach) -> _Reach:
        return _Reach(np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    def gathered(self, low: _Ints, high: _Ints) -> _Reach:
        """The reach of outputs that read positions low..high; those outside are padding. `first` and `last` grow along
        the axis in every operation of the table, so the ends of a range have its extremes."""
        end = len(self.first) - 1
        return _Reach(self.first[np.clip(low, 0, end)], self.last[np.clip(high, 0, end)])


def _windowed(reach: _Reach, size: int, *, kernel: int, stride: int, padding: int, dilation: int = 1) -> _Reach:
    start = np.arange(size) * stride - padding
    return reach.gathered(start, start + (kernel - 1) * dilation)


def _convolution(reach: _Reach, result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    _, weight, _, stride, padding, dilation, transposed, _, _ = args
    if transposed:
        raise UnknownOperationError("transposed convolution")
    if result.dim() != 4 or len(set(weight.shape[2:])) != 1:
        raise UnknownOperationError(f"convolution with a kernel of {tuple(weight.shape[2:])}")
    return _windowed(
        reach, result.shape[2], kernel=weight.shape[2], stride=stride[0], padding=padding[0], dilation=dilation[0]
    )


def _pool(reach: _Reach, result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    kernel = args[1][0]
    stride = args[2][0] if len(args) > 2 and args[2] else kernel
    padding = args[3][0] if len(args) > 3 else 0
    return _windowed(reach, result.shape[2], kernel=kernel, stride=stride, padding=padding)


def _upsampled(reach: _Reach, result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    """Nearest neighbours: output o copies input floor(o in / out)."""
    size = result.shape[2]
    source = np.arange(size) * len(reach.first) // size
    return reach.gathered(source, source)


def _unshuffled(reach: _Reach, result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    return _windowed(reach, result.shape[2], kernel=args[1], stride=args[1], padding=0)


def _padded(reach: _Reach, result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    source = np.arange(result.shape[2]) - (args[1][2] if len(args[1]) > 2 else 0)
    return reach.gathered(source, source)


_MOVING: Mapping[str, Callable[[_Reach, torch.Tensor, tuple[Any, ...]], _Reach]] = MappingProxyType(
    {
        "convolution": _convolution,
        "avg_pool2d": _pool,
        "max_pool2d_with_indices": _pool,
        "upsample_nearest2d": _upsampled,
        "pixel_shuffle": _upsampled,
        "pixel_unshuffle": _unshuffled,
        "constant_pad_nd": _padded,
    }
)
"""Operations that move positions, by their name in ATen."""


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the reach of every tensor that depends on the input."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        positions = np.arange(tensor.shape[2])
        # Holding the tensors keeps their ids unique. None: it depends on the input, but positions are lost.
        self._known: dict[int, tuple[torch.Tensor, _Reach | None]] = {
            id(tensor): (tensor, _Reach(positions, positions))
        }

    def reach(self, tensor: torch.Tensor) -> _Reach:
        _, reach = self._known.get(id(tensor), (tensor, None))
        if reach is None:
            raise UnknownOperationError("what the result depends on was lost when positions were flattened")
        return reach

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flat = [value for arg in args for value in (arg if isinstance(arg, list | tuple) else (arg,))]
        reaches = [self._known[id(value)][1] for value in flat if id(value) in self._known]
        if reaches:
            for tensor in result if isinstance(result, tuple | list) else (result,):
                self._known[id(tensor)] = (tensor, _after(func, reaches, tensor, args))
        return result


def _after(func: Any, reaches: list[_Reach | None], result: torch.Tensor, args: tuple[Any, ...]) -> _Reach | None:
    name = func.overloadpacket.__name__
    if name in _MIXING:
        raise _MixesError(name)
    if name in _FLATTENING or None in reaches:
        return None
    return _joined(name, [reach for reach in reaches if reach is not None], result, args)


def _joined(name: str, reaches: list[_Reach], result: torch.Tensor, args: tuple[Any, ...]) -> _Reach:
    if name in _MOVING:
        return _MOVING[name](reaches[0], result, args)
    if name not in _POINTWISE or result.dim() != 4 or (name == "cat" and args[1:] not in ((1,), (-3,))):
        raise UnknownOperationError(name)
    joined = reaches[0]
    for reach in reaches[1:]:
        if len(reach.first) != len(joined.first):
            raise UnknownOperationError(f"{name} of tensors of different sizes")
        joined = joined.joined(reach)
    return joined


def analytic_field(module: nn.Module, channels: int, *, size: int = 256) -> ReceptiveField | Unbounded:
    """Return the receptive field of a module that maps [N, channels, H, W] to [N, C', H', W'], both axes alike.

    size: of the square input that is followed, which should exceed the field. Only shapes are computed, whatever the
    weights' device. Raises UnknownOperationError for an operation outside the tables.
    """
    weights = {name: value.detach().to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    dtype = next((value.dtype for value in weights.values()), torch.float32)
    start = torch.empty((1, channels, size, size), dtype=dtype, device="meta")
    with torch.no_grad(), _Follower(start) as follower:
        try:
            result = torch.func.functional_call(module, weights, (start,))
        except _MixesError as mixes:
            return Unbounded(because=str(mixes))
        reach = follower.reach(result)
    return field_of(reach.first, reach.last, size)
