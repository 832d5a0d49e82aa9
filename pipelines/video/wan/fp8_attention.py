"""Owns attention in fp8: cuDNN's kernel through its own frontend, and the same arithmetic in plain PyTorch.

Queries, keys and values are e4m3 [B, N | M, heads, D], each a number times its scale. So is cuDNN's own result; over
parts of the keys (attention_parts) it is merged, else only converted. The probabilities,
relative to the largest of a row, are multiplied by 256 before they are rounded to e4m3: the smallest kept is then 2^-17
of the largest instead of 2^-9, which thousands of keys of small weight need. Scales are one number for a tensor: e4m3
has a range of 2^18, and RMSNorm bounds queries and keys, so a static scale neither clips nor loses precision.
Subtracting the mean of the keys per head, which int8 attention needs (SageAttention, 2410.02367), gains nothing here:
measured on mini-video, docs/log.md.
Independent of the cache, rotary embeddings and the transformer.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from cache.kv.store import E4M3, converted

from .attention_parts import parts_of_keys

Join = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]
PROBABILITY_SCALE = 256.0
PACKAGE = "nvidia-cudnn-frontend"


class Fp8Scales(NamedTuple):
    """What each e4m3 tensor has been multiplied by, and the reciprocals: float32 tensors [1, 1, 1, 1] on the device.

    offset: [heads, D] float32, what was subtracted from the values, and is added to the result.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor
    query_descale: torch.Tensor
    key_descale: torch.Tensor
    value_descale: torch.Tensor
    output_descale: torch.Tensor
    offset: torch.Tensor

    @staticmethod
    def of(queries: float, keys: float, values: float, output: float, offset: torch.Tensor) -> Fp8Scales:
        """Make the tensors of numbers, on the device of the offset."""

        def tensor(number: float) -> torch.Tensor:
            return torch.full((1, 1, 1, 1), number, dtype=torch.float32, device=offset.device)

        return Fp8Scales(
            queries=tensor(queries),
            keys=tensor(keys),
            values=tensor(values),
            output=tensor(output),
            query_descale=tensor(1 / queries),
            key_descale=tensor(1 / keys),
            value_descale=tensor(1 / values),
            output_descale=tensor(1 / output),
            offset=offset,
        )


class Fp8Attention(Protocol):
    """softmax(Q K^T / sqrt(D)) V over e4m3."""

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scales: Fp8Scales
    ) -> torch.Tensor:
        """e4m3 [B, N, heads, D], [B, M, heads, D] twice -> bfloat16 [B, N, heads, D], the offset added."""
        ...


def missing_frontend() -> str:
    """Return why cuDNN's frontend cannot be used: ""; or a clause."""
    return "" if importlib.util.find_spec("cudnn") is not None else f"the package {PACKAGE} is not installed"


class PlainFp8Attention:
    """The same rounding in float32 arithmetic, on any device: for tests, and to measure what fp8 costs."""

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scales: Fp8Scales
    ) -> torch.Tensor:
        q, k, v = (x.float().transpose(1, 2) for x in (queries, keys, values))
        descale = scales.query_descale * scales.key_descale / math.sqrt(q.shape[-1])
        logits = (q @ k.transpose(-1, -2)) * descale
        weights = torch.exp(logits - logits.amax(-1, keepdim=True))
        rounded = converted(weights * PROBABILITY_SCALE, E4M3).float() / PROBABILITY_SCALE
        out = (rounded @ v) * (scales.value_descale * scales.output) / weights.sum(-1, keepdim=True)
        return ((converted(out, E4M3).float() * scales.output_descale).transpose(1, 2) + scales.offset).bfloat16()


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """A built cuDNN graph. inputs: q, k, v, then six scales; outputs: the result, two maxima, the log-sum-exps."""

    graph: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    workspace: torch.Tensor
    maxima: tuple[torch.Tensor, ...]


class CudnnFp8Attention:
    """cuDNN's kernel, built once for each shape. Captures in CUDA graphs; one CUDA stream at a time.

    Needs the package nvidia-cudnn-frontend and compute capability 9.0.
    """

    def __init__(self, device: torch.device, join: Join) -> None:
        """join: merges parts and converts; see `fp8_kernels.join`."""
        self._cudnn = importlib.import_module("cudnn")
        self._device, self._join = device, join
        with torch.cuda.device(device):
            self._handle = self._cudnn.create_handle()
        self._plans: dict[object, _Plan] = {}
        self._probability = tuple(
            torch.full((1, 1, 1, 1), x, dtype=torch.float32, device=device)
            for x in (1 / PROBABILITY_SCALE, PROBABILITY_SCALE)
        )

    def __call__(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scales: Fp8Scales
    ) -> torch.Tensor:
        parts = parts_of_keys(queries, keys) if queries.shape[0] == 1 else 1
        if parts > 1:
            queries = queries.expand(parts, -1, -1, -1)
            keys, values = (x.reshape(parts, -1, *x.shape[2:]) for x in (keys, values))
        outputs, sums = self._run((queries, keys, values), scales, parts > 1)
        return self._join(outputs, sums, scales.output_descale, scales.offset, torch.bfloat16)

    def _run(
        self, tensors: tuple[torch.Tensor, ...], scales: Fp8Scales, with_sums: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        plan = self._plan(tensors, with_sums)
        batch, tokens, heads, _ = tensors[0].shape
        out = torch.empty(tensors[0].shape, dtype=E4M3, device=self._device)
        sums = torch.empty((batch, heads, tokens, 1), device=self._device) if with_sums else None
        numbers = (scales.query_descale, scales.key_descale, scales.value_descale, *self._probability, scales.output)
        results = (out, *plan.maxima, *(() if sums is None else (sums,)))
        pack = dict(zip((*plan.inputs, *plan.outputs), (*tensors, *numbers, *results), strict=True))
        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        plan.graph.execute(pack, plan.workspace, handle=self._handle)
        return out, sums

    def _plan(self, tensors: tuple[torch.Tensor, ...], with_sums: bool) -> _Plan:
        key = (with_sums, *((x.shape, x.stride()) for x in tensors))
        if key not in self._plans:
            with torch.inference_mode(False):
                self._plans[key] = self._build(tensors, with_sums)
        return self._plans[key]

    def _build(self, tensors: tuple[torch.Tensor, ...], with_sums: bool) -> _Plan:
        """Build the kernel that cuDNN's heuristic puts first; others are never tried."""
        kinds, (batch, tokens, heads, dim) = self._cudnn.data_type, tensors[0].shape
        graph = self._cudnn.pygraph(
            io_data_type=kinds.FP8_E4M3,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )
        nodes = [
            graph.tensor(dim=_heads_first(x.shape), stride=_heads_first(x.stride()), data_type=kinds.FP8_E4M3)
            for x in tensors
        ]
        numbers = [graph.tensor(dim=[1] * 4, stride=[1] * 4, data_type=kinds.FLOAT) for _ in range(6)]
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        out, sums, *maxima = graph.sdpa_fp8(
            **dict(zip("qkv", nodes, strict=True)),
            **dict(zip(names, numbers, strict=True)),
            attn_scale=1 / math.sqrt(dim),
            use_causal_mask=False,
            generate_stats=with_sums,
        )
        stride = [tokens * heads * dim, dim, heads * dim, 1]
        out.set_output(True).set_dim([batch, heads, tokens, dim]).set_stride(stride).set_data_type(kinds.FP8_E4M3)
        for maximum in maxima:
            maximum.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(kinds.FLOAT)
        if with_sums:
            stride = [heads * tokens, tokens, 1, 1]
            sums.set_output(True).set_dim([batch, heads, tokens, 1]).set_stride(stride).set_data_type(kinds.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(max(graph.get_workspace_size(), 1), dtype=torch.uint8, device=self._device)
        unused = tuple(torch.zeros((1, 1, 1, 1), device=self._device) for _ in maxima)
        outputs = (out, *maxima, *((sums,) if with_sums else ()))
        return _Plan(graph, (*nodes, *numbers), outputs, workspace, unused)


def _heads_first(sizes: tuple[int, ...]) -> list[int]:
    batch, tokens, heads, dim = sizes
    return [batch, heads, tokens, dim]
