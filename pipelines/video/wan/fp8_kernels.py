"""Owns the pieces between the products of an fp8 block, each with the quantisation of its result: as plain tensor code.

Independent of the block's structure and weights. fp8_triton.py has the same as kernels for CUDA; both compute in
float32 and agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from cache.kv.store import E4M3, converted
from cache.rotary import rotate_pairs

from .blocks import gated_residual, wide
from .fp8_attention import Fp8Scales
from .fp8_products import quantise_rows

Rows = tuple[torch.Tensor, torch.Tensor]
"""e4m3 [M, D] and scales [M, 1] float32; see `quantise_rows`."""
SHIFT, SCALE, GATE, SHIFT_MLP, SCALE_MLP, GATE_MLP = range(6)


class Modulation(NamedTuple):
    """What modulates a block's frames: table [1, 6, dim] float32 plus time [B, F | 1, 6, dim]."""

    table: torch.Tensor
    time: torch.Tensor

    def part(self, number: int) -> torch.Tensor:
        """[B, F | 1, 1, dim] in at least float32. number: SHIFT ... GATE_MLP."""
        return (wide(self.table)[:, number] + wide(self.time)[:, :, number]).unsqueeze(2)


class HeadNorms(NamedTuple):
    """The norms of queries and keys, and the rotation: cos, sin [B | 1, N, 1, D/2]."""

    query: torch.Tensor
    key: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def modulated_rows(
    hidden: torch.Tensor,
    update: torch.Tensor | None,
    modulation: Modulation,
    first: int,
    mean: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, Rows]:
    """x + u, and LN(x + u) (1 + scale) + shift - mean as rows. hidden: [B, F, n, dim]; update: the same or None.

    first: SHIFT or SHIFT_MLP; the scale is the next part. mean: [dim] float32.
    """
    hidden = hidden if update is None else hidden + update.view_as(hidden)
    normed = F.layer_norm(wide(hidden), hidden.shape[-1:], eps=eps)
    return hidden, quantise_rows(normed * (1 + modulation.part(first + 1)) + modulation.part(first), mean)


def affine_rows(
    hidden: torch.Tensor,
    update: torch.Tensor,
    modulation: Modulation,
    norm: tuple[torch.Tensor, torch.Tensor] | None,
    mean: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, Rows]:
    """x + gate u, and its affine LayerNorm (None: itself) less mean as rows; otherwise as `modulated_rows`."""
    hidden = gated_residual(hidden, update.view_as(hidden), modulation.part(GATE))
    if norm is None:
        return hidden, quantise_rows(hidden, mean)
    weight, bias = (wide(x) for x in norm)
    return hidden, quantise_rows(F.layer_norm(wide(hidden), hidden.shape[-1:], weight, bias, eps), mean)


def residual(hidden: torch.Tensor, update: torch.Tensor, modulation: Modulation) -> torch.Tensor:
    """x + gate u, with the MLP's gate."""
    return gated_residual(hidden, update.view_as(hidden), modulation.part(GATE_MLP))


def gelu_rows(x: torch.Tensor, mean: torch.Tensor) -> Rows:
    """GELU (tanh) less mean as rows."""
    return quantise_rows(F.gelu(wide(x), approximate="tanh"), mean)


def head_parts(
    qkv: torch.Tensor, norms: HeadNorms, heads: int, eps: float, scales: Fp8Scales | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, N, 3 dim] -> normed and rotated queries, normed keys, values, each [B, N, heads, D].

    scales: all three times their scale, and the queries in e4m3; None: in the dtype of qkv.
    """
    queries, keys, values = qkv.chunk(3, dim=-1)
    shape, dim = (*queries.shape[:-1], heads, -1), queries.shape[-1:]
    queries = F.rms_norm(wide(queries), dim, wide(norms.query), eps).reshape(shape)
    queries = rotate_pairs(queries, norms.cos, norms.sin)
    keys = F.rms_norm(wide(keys), dim, wide(norms.key), eps).reshape(shape)
    values = values.reshape(shape)
    if scales is None:
        return queries.to(qkv.dtype), keys.to(qkv.dtype), values
    scaled = converted(queries * scales.queries, E4M3)
    return scaled, (keys * scales.keys).to(qkv.dtype), (wide(values) * scales.values).to(qkv.dtype)


def join(
    outputs: torch.Tensor, sums: torch.Tensor | None, descale: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """e4m3 [B, N, heads, D] times descale plus offset [heads, D] -> dtype.

    With sums, log-sum-exps [parts, heads, N, 1] float32, the batch holds attention over parts of the keys, which is
    merged -> [1, N, heads, D]; see attention_parts.
    """
    wide_outputs = outputs.float()
    if sums is not None:
        wide_outputs = (torch.softmax(sums, dim=0).transpose(1, 2) * wide_outputs).sum(0, keepdim=True)
    return (wide_outputs * descale + offset).to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Kernels:
    """The functions above, or kernels that compute the same."""

    modulated_rows: Callable[..., tuple[torch.Tensor, Rows]] = modulated_rows
    affine_rows: Callable[..., tuple[torch.Tensor, Rows]] = affine_rows
    residual: Callable[..., torch.Tensor] = residual
    gelu_rows: Callable[..., Rows] = gelu_rows
    head_parts: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = head_parts
    join: Callable[..., torch.Tensor] = join


PLAIN_FP8_KERNELS = Fp8Kernels()
"""Plain tensor code, on any device."""
