"""Owns the conversion of a part to an OpenVINO model: exported by PyTorch, any number of rows, all floats float32.

Independent of precisions, files and quantisation. OpenVINO computes in the precision that is chosen when the model is
compiled, so a model that was loaded in bfloat16 is converted as float32 operations on its bfloat16 weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.core.parts import Part

from .library import import_openvino

ROW_AXES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {"pass": MappingProxyType(dict.fromkeys(("text_keys", "text_values", "past_keys", "past_values"), 1))}
)
"""By part and input: the axis along which batch rows lie, where it is not the first."""


def row_axes(part: Part) -> dict[str, int]:
    """Return the axis of batch rows of each input."""
    special = ROW_AXES.get(part.name, {})
    return {name: special.get(name, 0) for name in part.inputs}


@torch.no_grad()
def converted(part: Part, *, narrow_weights: bool) -> Any:
    """Return an openvino.Model whose inputs and outputs are those of the part, floats as float32, rows dynamic.

    narrow_weights: keep weights that are bfloat16 so, which halves the file; NNCF needs them in float32.
    """
    openvino = import_openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        model = openvino.convert_model(_exported(part), share_weights=False)
    _widen(openvino, model, narrow_weights)
    return model


def _exported(part: Part) -> torch.export.ExportedProgram:
    axes = row_axes(part)
    inputs = tuple(_two_rows(tensor, axes[name]) for name, tensor in part.inputs.items())
    dynamic = tuple({axes[name]: torch.export.Dim.DYNAMIC} for name in part.inputs)
    shapes = (dynamic,) if _takes_any_number(part.module) else dynamic
    program = torch.export.export(part.module, inputs, dynamic_shapes=shapes, strict=False)
    # OpenVINO reads weights of 16 bits wrongly unless they are contiguous.
    for name, tensor in list(program.state_dict.items()):
        plain = tensor.detach().contiguous()
        is_parameter = isinstance(tensor, nn.Parameter)
        program.state_dict[name] = nn.Parameter(plain, requires_grad=False) if is_parameter else plain
    return program


def _two_rows(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the tensor with at least two rows: PyTorch takes an axis of length 1 for a constant."""
    return torch.cat((tensor, tensor), axis) if tensor.shape[axis] == 1 else tensor


def _takes_any_number(module: nn.Module) -> bool:
    """Whether forward has one parameter, *inputs, for which PyTorch wants one tuple of shapes."""
    code = module.forward.__code__
    return bool(code.co_flags & 0x04)


def _widen(openvino: Any, model: Any, narrow_weights: bool) -> None:
    """Make all operations float32 that are bfloat16."""
    bf16, f32, ops = openvino.Type.bf16, openvino.Type.f32, openvino.opset13
    for op in model.get_ordered_ops():
        if op.get_output_size() == 0 or op.get_output_element_type(0) != bf16:
            continue
        kind = op.get_type_name()
        if kind == "Parameter":
            op.set_element_type(f32)
        elif kind == "Constant":
            readers = list(op.output(0).get_target_inputs())
            wide = ops.convert(op, "f32") if narrow_weights else ops.constant(op.get_data(dtype=np.float32))
            for reader in readers:
                reader.replace_source_output(wide.output(0))
        elif kind == "Convert":
            wide = ops.convert(op.input_value(0), "f32")
            wide.set_friendly_name(op.get_friendly_name())
            op.output(0).replace(wide.output(0))
    model.validate_nodes_and_infer_types()
