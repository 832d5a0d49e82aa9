"""Owns the inputs and outputs of a loaded plan: their order, shapes and dtypes, checked against what the caller passes.

A tensor of the wrong dtype would be read as garbage, without an error. Independent of CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import PlanError

ALIGNMENT_BYTES = 256
"""Of the addresses that TensorRT takes."""

_DTYPES: Mapping[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
    "FP8": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTensor:
    """An input or output of a plan."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def torch_dtype(dtype: Any) -> torch.dtype:
    """Return PyTorch's dtype for TensorRT's. Raises PlanError for one that PyTorch lacks."""
    if dtype.name not in _DTYPES:
        raise PlanError(f"The plan has a tensor of type {dtype.name}, which PyTorch lacks.", "Build it again.")
    return _DTYPES[dtype.name]


def read_tensors(api: Any, engine: Any, names: Sequence[str], *, inputs: bool) -> list[PlanTensor]:
    """Return the inputs or outputs of a loaded plan in the order of `names`. Raises PlanError if it has others."""
    mode = api.TensorIOMode.INPUT if inputs else api.TensorIOMode.OUTPUT
    all_names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = [name for name in all_names if engine.get_tensor_mode(name) == mode]
    if sorted(found) != sorted(names):
        kind = "inputs" if inputs else "outputs"
        raise PlanError(
            f"The plan's {kind} are {', '.join(sorted(found))}, not {', '.join(sorted(names))}.", "Build it again."
        )
    return [
        PlanTensor(
            name=name,
            shape=tuple(engine.get_tensor_shape(name)),
            dtype=torch_dtype(engine.get_tensor_dtype(name)),
        )
        for name in names
    ]


def check_inputs(tensors: Sequence[PlanTensor], given: Sequence[torch.Tensor]) -> None:
    """Raise PlanError unless number, shapes and dtypes of the given inputs are the plan's."""
    if len(tensors) != len(given):
        raise PlanError(f"The plan takes {len(tensors)} inputs, not {len(given)}.", "Build it again.")
    for tensor, value in zip(tensors, given, strict=True):
        if tensor.shape != tuple(value.shape) or tensor.dtype is not value.dtype:
            raise PlanError(
                f"The plan's input {tensor.name} is {_text(tensor.shape, tensor.dtype)}, not "
                f"{_text(tuple(value.shape), value.dtype)}.",
                "Build a plan for this size.",
            )


def can_bind(tensor: torch.Tensor) -> bool:
    """Whether TensorRT can read the tensor where it is."""
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT_BYTES == 0


def _text(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"
