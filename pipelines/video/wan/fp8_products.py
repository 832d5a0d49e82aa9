"""Owns linear layers in fp8: e4m3 weights with a scale per output, e4m3 activations with a scale per token.

Scales per row keep a token or an output with large values from costing the others precision. Quantising is written as
plain tensor code, so that a compiler fuses it into the norm or the activation before it. Independent of blocks,
attention and the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from cache.kv.store import E4M3, E4M3_MAX

_SMALLEST = 1e-12


class Fp8Linear(NamedTuple):
    """y = W (x - m) + b'. weight: [out, in] e4m3; scale: [1, out] float32, W is about weight * scale^T.

    mean: m, [in] float32, what to subtract from inputs before they are quantised; bias: b' = b + W m, [out].
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor


def quantise_rows(x: torch.Tensor, mean: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., D] less mean [D] -> e4m3 [rows, D] and float32 scales [rows, 1]: x is about q * scale, to 2^-4 |x|.

    The largest number of a row becomes e4m3's largest, 448; numbers below 2^-15 of it are rounded to multiples of
    2^-18 of it.
    """
    wide = x.float().flatten(0, -2)
    wide = wide if mean is None else wide - mean
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(_SMALLEST) * (1 / E4M3_MAX)
    return (wide / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def quantised_linear(layers: Sequence[nn.Linear], mean: torch.Tensor) -> Fp8Linear:
    """Quantise linear layers of one input as one, their outputs side by side. mean: of the input, [in] float32."""
    whole = torch.cat([layer.weight for layer in layers])
    weight, scale = quantise_rows(whole)
    bias = torch.cat([layer.bias for layer in layers])
    shifted = (bias.float() + whole.float() @ mean).to(bias.dtype)
    return Fp8Linear(weight=weight.contiguous(), scale=scale.t().contiguous(), bias=shifted, mean=mean)


def product(rows: torch.Tensor, scale: torch.Tensor, linear: Fp8Linear) -> torch.Tensor:
    """e4m3 [M, in] with scales [M, 1] float32 -> [M, out] in the bias's dtype, bfloat16 on CUDA.

    Elsewhere the same numbers are multiplied in float32: for tests, and to measure what fp8 costs.
    """
    if not rows.is_cuda:
        wide = (rows.float() @ linear.weight.float().t()) * scale * linear.scale
        return (wide + linear.bias).to(linear.bias.dtype)
    return torch._scaled_mm(
        rows,
        linear.weight.t(),
        scale_a=scale,
        scale_b=linear.scale,
        bias=linear.bias,
        out_dtype=linear.bias.dtype,
        use_fast_accum=True,
    )
