"""Owns running an OpenVINO model on the CPU as a `PartCall`: compiled at fixed shapes, without copies of tensors.

Independent of how the model was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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


_CHANNELS_LAST = (0, 2, 3, 1)


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


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Return channels last if the tensor is in that order and in no other."""
    return torch.channels_last if _is_channels_last(tensor) else torch.contiguous_format


def _is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a part returns: its dtype, and whether its memory is [N, H, W, C] though its shape is [N, C, H, W]."""

    dtype: torch.dtype
    channels_last: bool = False

    @classmethod
    def like(cls, tensor: torch.Tensor) -> Self:
        """Take both from a tensor."""
        return cls(dtype=tensor.dtype, channels_last=_is_channels_last(tensor))

    def memory(self, stored: tuple[int, ...]) -> torch.Tensor:
        """Return memory. stored: its shape in the order in which it is stored."""
        tensor = torch.empty(stored, dtype=self.dtype)
        return tensor.movedim(-1, 1) if self.channels_last else tensor


class OpenVINOCall:
    """A `PartCall`. Inputs are read and outputs written in place; Python runs meanwhile.

    Outputs are the same memory at each call. The threads are OpenVINO's own, as many as given; they sleep when idle.
    Rows that the threads can share evenly run as requests side by side, each with its own threads, which wait for each
    other once a call instead of once a layer: two rows of mini-image's UNet on two threads take 0.8 of the time.
    """

    def __init__(
        self, model: Any, part: Part, outputs: Sequence[Output], threads: int, *, in_rows: bool = False
    ) -> None:
        """model: openvino.Model with the part's inputs and `outputs`. in_rows: the first axis of all inputs and outputs
        is the batch, whose rows are independent. Inputs are taken in the order of the part's own: channels last or not.
        """
        openvino = import_openvino()
        self._openvino, self._names = openvino, tuple(part.inputs)
        self._signature = part.signature
        self._formats = [memory_format(tensor) for tensor in part.inputs.values()]
        rows = self._signature[0][0][0]
        lanes = math.gcd(rows, threads) if in_rows else 1
        self._lanes = [slice(i * rows // lanes, (i + 1) * rows // lanes) for i in range(lanes)]
        compiled = _compiled(openvino, model, part, outputs, threads, lanes)
        self._requests = [compiled.create_infer_request() for _ in self._lanes]
        shapes = [tuple(port.shape) for port in compiled.outputs]
        with torch.inference_mode(False):
            self._outputs: Tensors = tuple(
                output.memory((shape[0] * lanes, *shape[1:])) for output, shape in zip(outputs, shapes, strict=True)
            )
        for request, lane in zip(self._requests, self._lanes, strict=True):
            for i, tensor in enumerate(self._outputs):
                request.set_output_tensor(i, self._shared(tensor if lanes == 1 else tensor[lane]))
        self._bound: list[tuple[int, torch.Tensor] | None] = [None] * len(self._names)

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Run the part; the result is valid until the next call."""
        for i, given in enumerate(inputs):
            shape, dtype = self._signature[i]
            assert given.shape == shape, (self._names[i], given.shape, shape)
            assert given.dtype == dtype, (self._names[i], given.dtype, dtype)
            tensor = given.contiguous(memory_format=self._formats[i])
            bound = self._bound[i]
            if bound is None or bound[0] != tensor.data_ptr():
                self._bind(i, tensor)
        if len(self._requests) == 1:
            self._requests[0].infer()
            return self._outputs
        for request in self._requests:
            request.start_async()
        for request in self._requests:
            request.wait()
        return self._outputs

    def _bind(self, number: int, tensor: torch.Tensor) -> None:
        """Let the requests read an input from this memory."""
        for request, lane in zip(self._requests, self._lanes, strict=True):
            request.set_input_tensor(number, self._shared(tensor if len(self._lanes) == 1 else tensor[lane]))
        self._bound[number] = (tensor.data_ptr(), tensor)

    def _shared(self, tensor: torch.Tensor) -> Any:
        """Return an openvino.Tensor on the tensor's memory."""
        plain = tensor.detach()
        plain = plain if plain.is_contiguous() else plain.permute(_CHANNELS_LAST)
        bits = plain.view(torch.int16) if plain.dtype is torch.bfloat16 else plain
        array: np.ndarray[Any, Any] = bits.numpy()
        if plain.dtype is not torch.bfloat16:
            return self._openvino.Tensor(array, shared_memory=True)
        return self._openvino.Tensor(array, self._openvino.Shape(list(plain.shape)), self._openvino.Type.bf16)


def _compiled(openvino: Any, model: Any, part: Part, outputs: Sequence[Output], threads: int, lanes: int) -> Any:
    """Compile at the part's shapes, dtypes and orders, for `lanes` requests at once that share its rows."""
    shapes = [list(tensor.shape) for tensor in part.inputs.values()]
    if lanes > 1:
        shapes = [[length // lanes, *rest] for length, *rest in shapes]
    model.reshape(dict(enumerate(shapes)))
    prepared = openvino.preprocess.PrePostProcessor(model)
    for i, tensor in enumerate(part.inputs.values()):
        _describe(openvino, prepared.input(i), tensor.dtype, channels_last=_is_channels_last(tensor))
    for i, output in enumerate(outputs):
        _describe(openvino, prepared.output(i), output.dtype, channels_last=output.channels_last)
    config = {
        **precision_config(),
        "NUM_STREAMS": lanes,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    return core().compile_model(prepared.build(), "CPU", config)


def _describe(openvino: Any, port: Any, dtype: torch.dtype, *, channels_last: bool) -> None:
    """State what is in the memory behind an input or an output of a PrePostProcessor."""
    port.tensor().set_element_type(getattr(openvino.Type, _TYPES[dtype]))
    if channels_last:
        port.tensor().set_layout(openvino.Layout("NHWC"))
        port.model().set_layout(openvino.Layout("NCHW"))
