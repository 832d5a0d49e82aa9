"""Owns the export of a module of positional tensors to ONNX, at fixed shapes.

Attention, RMS norm, group norm and GELU stay single nodes (opset 23), for which TensorRT has kernels. Nothing is folded
into the weights' values but transpositions, which `weights.py` finds again. Independent of TensorRT and of models.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .errors import PlanError
from .weights import WeightSource, find_sources

OPSET = 23
"""The first with Attention; RMSNormalization came with it, GroupNormalization as TensorRT takes it in 21."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exported:
    """A module in ONNX. file: the graph, its weights beside it. inputs, outputs: names in the graph, in order.

    sources: where the graph's constants come from, for those that are the module's weights; see `weights.py`.
    """

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sources: Mapping[str, WeightSource]


def export_onnx(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str], folder: Path
) -> Exported:
    """Export a module, whose forward takes `inputs` in order and returns a tuple of tensors, into a folder.

    outputs: a name for each tensor that it returns. Names in the graph have a prefix, since the exporter gives its own
    values names such as "cos". Raises PlanError if the module cannot be exported.
    """
    names = tuple(f"in_{name}" for name in inputs)
    results = tuple(f"out_{name}" for name in outputs)
    file = folder / "model.onnx"
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=list(results),
                verbose=False,
            )
            assert program is not None
            program.save(str(file), external_data=True)
    except OSError:
        raise
    except Exception as error:  # the exporter raises anything for what it cannot translate
        cause = str(error).strip().splitlines()
        raise PlanError(
            f"The network cannot be exported to ONNX: {cause[0] if cause else type(error).__name__}.",
            "Use another backend for this model, and report it.",
        ) from error
    constants = {
        name: value.const_value for name, value in program.model.graph.initializers.items() if value.const_value
    }
    return Exported(file=file, inputs=names, outputs=results, sources=find_sources(constants, module))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on other packages, and its own deprecations, from the user."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(before)
