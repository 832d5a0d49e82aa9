"""Owns the contract of a part: one network call at fixed shapes, as compilers and exporters take it, and of a recipe,
which compiles parts to files and loads them again. Independent of models, engines and of where the files are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import nn

from pipelines.core.contracts import Notify

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
    def signature(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The shape and dtype of each input."""
        return signature_of(tuple(self.inputs.values()))


def signature_of(tensors: Tensors) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Return the shape and dtype of each tensor."""
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


class Recipe(Protocol):
    """One way to compile parts. `build` runs in a process of its own, `load` in the process that runs the engine."""

    @property
    def name(self) -> str: ...

    @property
    def samples(self) -> int:
        """How many recorded inputs of the part `build` wants, to calibrate with; 0: none."""
        ...

    @property
    def bakes_weights(self) -> bool:
        """Whether the file contains the weights, so that other weights need another file."""
        ...

    def key(self, part: Part) -> Mapping[str, str]:
        """Return what determines the file besides recipe, part and shapes: device, versions, options."""
        ...

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """Compile the part into files in `folder`, which is empty. Raises ModelError, with the remedy."""
        ...

    def load(self, part: Part, folder: Path) -> PartCall:
        """Load what `build` wrote. part: of this process, with the weights to use. Raises ModelError."""
        ...
