"""Owns the contract of a part: one network call at fixed shapes, as compilers and exporters take it.

Independent of models, engines and compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from .preparation import InputForm

Tensors: TypeAlias = tuple[torch.Tensor, ...]
PartCall = Callable[..., Tensors]
"""A compiled part: takes the inputs in order and returns the outputs, which stay valid until its next call."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One network call at fixed shapes.

    name: "denoise", "encode", "decode" of an image model; "pass", "encode", "decode" of a video model. module: its
    forward takes the inputs in order and returns a tuple of tensors; it keeps no state and does not branch on values;
    its parameters are the model's own tensors. inputs: example inputs by name, with the real shapes, dtypes, device.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]

    @property
    def layouts(self) -> tuple[tuple[int, ...], ...]:
        """The strides of each input."""
        return tuple(tensor.stride() for tensor in self.inputs.values())

    @property
    def input_forms(self) -> tuple[InputForm, ...]:
        """Shapes, strides and dtypes of the inputs, for another process."""
        return tuple(
            InputForm(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                strides=tensor.stride(),
            )
            for name, tensor in self.inputs.items()
        )

    @property
    def signature(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The shape and dtype of each input."""
        return signature_of(tuple(self.inputs.values()))


def signature_of(tensors: Tensors) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return the shape and dtype of each tensor."""
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


def inputs_like(forms: Iterable[InputForm], device: torch.device) -> dict[str, torch.Tensor]:
    """Return zeros of these shapes, strides and dtypes by name, also for use outside of inference mode."""
    with torch.inference_mode(False):
        return {
            form.name: torch.empty_strided(
                form.shape, form.strides, dtype=getattr(torch, form.dtype), device=device
            ).zero_()
            for form in forms
        }
