"""Owns the conversion of a part to an OpenVINO model: exported by PyTorch, some lengths left open, floats float32.

Independent of precisions, files and quantisation. OpenVINO computes in the precision that is chosen when the model is
compiled, so a model that was loaded in bfloat16 is converted as float32 operations on its bfloat16 weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.core.parts import Part

from .library import import_openvino

_VARIADIC = 0x04  # a flag of Python's code objects: the function takes *arguments
_PAST_AXIS = 2  # of past_keys and past_values


def dynamic_axes(part: Part) -> dict[str, int | None]:
    """Return the axis of each input that may have any length in the file; None: all its lengths are fixed.

    Of an image model's parts: the rows. Of a video's pass: the past tokens, which are fewer while the window fills. Of
    a video codec's steps: none.
    """
    if part.name == "pass":
        return {name: _PAST_AXIS if name.startswith("past_") else None for name in part.inputs}
    is_step = any(name.startswith("state_") for name in part.inputs)
    return dict.fromkeys(part.inputs, None if is_step else 0)


@contextmanager
def converted(part: Part, *, narrow_weights: bool) -> Iterator[Any]:
    """Give an openvino.Model whose inputs and outputs are those of the part, floats as float32; see `dynamic_axes`.

    narrow_weights: keep weights that are bfloat16 so, which halves the file; NNCF needs them in float32. Outside of the
    context the model is not valid: its constants are the memory of PyTorch's tensors.
    """
    model, program = translated(part)
    _widen(import_openvino(), model, narrow_weights)
    yield model
    del program


@torch.no_grad()
def translated(part: Part) -> tuple[Any, torch.export.ExportedProgram]:
    """Return an openvino.Model of the part in its own precisions, in which OpenVINO does not run it, and the program
    that must live as long: OpenVINO 2026.4 refers to its weights, even if told not to share them."""
    openvino, program = import_openvino(), _exported(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        return openvino.convert_model(program, share_weights=False), program


def _exported(part: Part) -> torch.export.ExportedProgram:
    axes = dynamic_axes(part)
    inputs = tuple(_twice(tensor, axes[name]) for name, tensor in part.inputs.items())
    dynamic = tuple({} if axis is None else {axis: torch.export.Dim.DYNAMIC} for axis in axes.values())
    program = torch.export.export(
        part.module, inputs, dynamic_shapes=_as_parameters(part.module, dynamic), strict=False
    )
    # OpenVINO reads weights of 16 bits wrongly unless they are contiguous.
    for name, tensor in list(program.state_dict.items()):
        plain = tensor.detach().contiguous()
        is_parameter = isinstance(tensor, nn.Parameter)
        program.state_dict[name] = nn.Parameter(plain, requires_grad=False) if is_parameter else plain
    return program


def _twice(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return the tensor with a length of at least 2 along the axis: PyTorch takes a length of 1 for a constant."""
    return tensor if axis is None or tensor.shape[axis] > 1 else torch.cat((tensor, tensor), axis)


def _as_parameters(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Group the shapes as the parameters of forward, of which *inputs is one."""
    code = module.forward.__code__
    named = code.co_argcount - 1
    return (*shapes[:named], shapes[named:]) if code.co_flags & _VARIADIC else shapes


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
