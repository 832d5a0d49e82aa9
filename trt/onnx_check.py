"""Owns the check of an exported graph: ONNX Runtime against PyTorch, on the CPU, before anything is built from it.

A graph in bfloat16, for which ONNX Runtime has no kernels on CPUs, is raised to float32 on both sides: the same graph
and the same rounded weights in wider arithmetic. Independent of TensorRT and of models.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .errors import PlanError
from .export import Exported

FLOAT32_RELATIVE = 1e-4
"""Largest relative error of a float32 graph: both sides round at 6e-8 a step, in different orders of summation."""
HALF_DB = 40.0
"""Lowest ratio of signal to error of a 16-bit graph: bfloat16 rounds by up to 2^-8, which the steps of a network add up
to 39 to 45 dB; float16 gives 50 to 78 dB on the bundled models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of a check. errors: relative error (of the norm) of each output. how: for people."""

    errors: Mapping[str, float]
    how: str

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(self.errors.values())

    def __str__(self) -> str:
        return f"ONNX Runtime against PyTorch: {decibels(self.worst):.0f} dB ({self.how})"


def check_export(exported: Exported, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> CheckReport:
    """Run the graph and the module on the same inputs, on the CPU. Raises PlanError if they differ by too much."""
    dtypes = {tensor.dtype for tensor in (*module.parameters(), *inputs.values())}
    raised = torch.bfloat16 in dtypes
    with torch.no_grad(), InFloat32() if raised else nullcontext():
        wanted = module(*inputs.values())
    got = run_onnx(exported.file, dict(zip(exported.inputs, inputs.values(), strict=True)), raised=raised)
    errors = {
        name: relative_error(result, want) for name, result, want in zip(exported.outputs, got, wanted, strict=True)
    }
    half = torch.float16 in dtypes and not raised
    arithmetic = "float16" if half else "float32 arithmetic on bfloat16 weights" if raised else "float32"
    report = CheckReport(errors=errors, how=arithmetic)
    limit = 10 ** (-HALF_DB / 20) if half else FLOAT32_RELATIVE
    if not report.worst <= limit:
        raise PlanError(
            f"The exported graph computes something else than the network: {report}; it must be within "
            f"{decibels(limit):.0f} dB.",
            "Use another backend for this model, and report it.",
        )
    return report


def run_onnx(file: Path, inputs: Mapping[str, torch.Tensor], *, raised: bool = False) -> tuple[torch.Tensor, ...]:
    """Run a graph with ONNX Runtime on the CPU and return its outputs. raised: bfloat16 is computed in float32."""
    return OnnxRun(file, raised=raised)(inputs)


class OnnxRun:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(
        self, file: Path, *, raised: bool = False, constants: Mapping[str, torch.Tensor] | None = None, threads: int = 0
    ) -> None:
        """raised: bfloat16 is computed in float32. constants: replace those of the graph. threads: 0: all cores."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        levels = onnxruntime.GraphOptimizationLevel  # fusions (Conv and Mul) take the graph's own constants
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if constants else levels.ORT_ENABLE_BASIC
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(_float32_if(raised, tensor).numpy())
            for name, tensor in (constants or {}).items()
        }
        for name, value in values.items():
            options.add_initializer(name, value)
        self._raised, self._values = raised, values  # the session refers to the values
        with tempfile.TemporaryDirectory(dir=file.parent, ignore_cleanup_errors=True) as folder:
            source = raise_to_float32(file, Path(folder)) if raised else file
            self._session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """inputs: by name in the graph. Returns the outputs in order; of a raised graph in float32."""
        used = {node.name for node in self._session.get_inputs()}
        arrays = {
            name: _float32_if(self._raised, tensor.cpu()).contiguous().numpy()
            for name, tensor in inputs.items()
            if name in used
        }
        return tuple(torch.from_numpy(array) for array in self._session.run(None, arrays))


class InFloat32(TorchFunctionMode):
    """Compute everything that is in 16 bits in float32: arguments are converted, and so are requested dtypes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function on converted arguments."""
        return func(*tree_map(_raise, args), **tree_map(_raise, kwargs or {}))


def raise_to_float32(file: Path, folder: Path) -> Path:
    """Write a graph into a folder, with bfloat16 replaced by float32 in weights, inputs, outputs and casts."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(file))
    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
            elif attribute.name in ("to", "dtype", "stash_type", "softmax_precision") and attribute.i == narrow:
                attribute.i = wide
    for tensor in tensors:
        if tensor.data_type == narrow:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    del model.graph.value_info[:]
    raised = folder / "raised.onnx"
    onnx.save(model, str(raised), save_as_external_data=True, location="raised.onnx.data")
    return raised


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """|got - wanted| / |wanted| in the Euclidean norm; infinity if a value is not finite or the shapes differ."""
    if got.shape != wanted.shape:
        return math.inf
    wanted = wanted.detach().double().cpu()
    difference, norm = got.detach().double().cpu() - wanted, float(wanted.norm())
    error = float(difference.norm()) / norm if norm else float(difference.norm())
    return error if math.isfinite(error) else math.inf


def decibels(relative: float) -> float:
    """Ratio of signal to error: -20 log10 of a relative error."""
    return -20 * math.log10(relative) if 0 < relative < math.inf else (math.inf if relative == 0 else -math.inf)


def _raise(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return torch.float32 if value in (torch.bfloat16, torch.float16) else value


def _float32_if(raised: bool, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if raised and tensor.dtype is torch.bfloat16 else tensor
