"""Owns running an OpenVINO model on the CPU as a `PartCall`: compiled at fixed shapes, without copies of tensors.

Independent of how the model was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.core.parts import Part, Tensors

from .library import core, import_openvino

_TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "boolean",
}


def cpu_features() -> tuple[str, ...]:
    """Return the processor's features that decide which kernels OpenVINO uses, as PyTorch names them."""
    names = ("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "dot")
    flags: Mapping[str, object] = torch.cpu.get_capabilities()
    return tuple(name for name in names if flags.get(name))


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_features())


def has_vnni() -> bool:
    """Whether the processor sums products of int8 without saturation."""
    return not {"avx_vnni", "avx512_vnni", "amx_int8", "dot"}.isdisjoint(cpu_features())


def precision_config() -> dict[str, str]:
    """Return the settings of what is not int8: bfloat16, or float32 where the processor lacks it.

    In float32, compiling networks with attention ends the process unless subgraphs are not fused (OpenVINO 2026.4).
    """
    if has_bfloat16():
        return {"INFERENCE_PRECISION_HINT": "bf16"}
    return {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE"}


def as_array(tensor: torch.Tensor) -> Any:
    """Return a tensor's values as a numpy array, floats as float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()


class OpenVINOCall:
    """A `PartCall` of one infer request. Inputs are read and outputs written in place; Python runs meanwhile.

    Outputs are the same memory at each call. The threads are OpenVINO's own, as many as given; they sleep when idle.
    """

    def __init__(self, model: Any, part: Part, outputs: Sequence[torch.dtype], threads: int) -> None:
        """model: openvino.Model with the part's inputs. outputs: dtype of each."""
        openvino = import_openvino()
        self._openvino, self._names = openvino, tuple(part.inputs)
        self._signature = part.signature
        self._request = _compiled(openvino, model, part, outputs, threads).create_infer_request()
        with torch.inference_mode(False):
            self._outputs: Tensors = tuple(
                torch.empty(tuple(port.shape), dtype=dtype)
                for port, dtype in zip(self._request.model_outputs, outputs, strict=True)
            )
        for i, tensor in enumerate(self._outputs):
            self._request.set_output_tensor(i, self._shared(tensor))
        self._bound: list[tuple[int, torch.Tensor] | None] = [None] * len(self._names)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Run the part; the result is valid until the next call."""
        for i, given in enumerate(inputs):
            shape, dtype = self._signature[i]
            assert given.shape == shape, (self._names[i], given.shape, shape)
            assert given.dtype == dtype, (self._names[i], given.dtype, dtype)
            tensor = given.contiguous()
            bound = self._bound[i]
            if bound is None or bound[0] != tensor.data_ptr():
                self._request.set_input_tensor(i, self._shared(tensor))
                self._bound[i] = (tensor.data_ptr(), tensor)
        self._request.infer()
        return self._outputs

    def _shared(self, tensor: torch.Tensor) -> Any:
        """Return an openvino.Tensor on the tensor's memory."""
        plain = tensor.detach()
        bits = plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain
        array: np.ndarray[Any, Any] = bits.numpy()
        if plain.dtype is not torch.bfloat16:
            return self._openvino.Tensor(array, shared_memory=True)
        return self._openvino.Tensor(array, self._openvino.Shape(list(plain.shape)), self._openvino.Type.bf16)


def _compiled(openvino: Any, model: Any, part: Part, outputs: Sequence[torch.dtype], threads: int) -> Any:
    """Compile at the part's shapes and dtypes."""
    model.reshape({i: list(tensor.shape) for i, tensor in enumerate(part.inputs.values())})
    prepared = openvino.preprocess.PrePostProcessor(model)
    for i, tensor in enumerate(part.inputs.values()):
        prepared.input(i).tensor().set_element_type(_type(openvino, tensor.dtype))
    for i, dtype in enumerate(outputs):
        prepared.output(i).tensor().set_element_type(_type(openvino, dtype))
    config = {
        **precision_config(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    return core().compile_model(prepared.build(), "CPU", config)


def _type(openvino: Any, dtype: torch.dtype) -> Any:
    return getattr(openvino.Type, _TYPES[dtype])
