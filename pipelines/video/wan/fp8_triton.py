"""Owns the pieces between the products of an fp8 block as Triton kernels: one pass over memory each.

The contracts, and the same in plain tensor code: fp8_kernels.py. A program takes one token; a width that is no power of
two is taken as two blocks that are. Imported only where Triton is installed.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202, N803

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

from cache.kv.store import E4M3

from .fp8_attention import Fp8Scales
from .fp8_kernels import GATE, GATE_MLP, Fp8Kernels, HeadNorms, Modulation, Rows


@triton.jit
def _rows_scale(largest):
    return tl.maximum(largest, 1e-12) * (1.0 / 448.0)


@triton.jit
def _to_e4m3(x):
    return tl.minimum(tl.maximum(x, -448.0), 448.0).to(tl.float8e4nv)


@triton.jit
def _gelu(x):
    """x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is GELU (tanh)."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def _gelu_kernel(x, mean, q, s, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    a, b = tl.arange(0, A), A + tl.arange(0, B)
    xa = _gelu(tl.load(x + row * D + a).to(tl.float32)) - tl.load(mean + a)
    xb = _gelu(tl.load(x + row * D + b, mask=b < D, other=0.0).to(tl.float32))
    xb -= tl.load(mean + b, mask=b < D, other=0.0)
    scale = _rows_scale(tl.maximum(tl.max(tl.abs(xa), 0), tl.max(tl.abs(xb), 0)))
    tl.store(s + row, scale)
    tl.store(q + row * D + a, _to_e4m3(xa / scale))
    tl.store(q + row * D + b, _to_e4m3(xb / scale), mask=b < D)


@triton.jit
def _norm_kernel(
    x, update, table, time, weight, bias, mean_in, out, q, s, row_frame, eps,
    D: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    UPDATE: tl.constexpr, GATE: tl.constexpr, FIRST: tl.constexpr, AFFINE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """GATE: the part of the modulation that multiplies the update, or -1; FIRST: that of shift and scale, or -1."""
    row = tl.program_id(0).to(tl.int64)
    a, b = tl.arange(0, A), A + tl.arange(0, B)
    inside = b < D
    base = x + row * D
    xa = tl.load(base + a).to(tl.float32)
    xb = tl.load(base + b, mask=inside, other=0.0).to(tl.float32)
    of_time = time + (row // row_frame) * 6 * D
    if UPDATE:
        ua = tl.load(update + row * D + a).to(tl.float32)
        ub = tl.load(update + row * D + b, mask=inside, other=0.0).to(tl.float32)
        if GATE >= 0:
            ua *= tl.load(table + GATE * D + a) + tl.load(of_time + GATE * D + a).to(tl.float32)
            gb = tl.load(table + GATE * D + b, mask=inside, other=0.0)
            ub *= gb + tl.load(of_time + GATE * D + b, mask=inside, other=0.0).to(tl.float32)
        ra, rb = (xa + ua).to(out.dtype.element_ty), (xb + ub).to(out.dtype.element_ty)
        tl.store(out + row * D + a, ra)
        tl.store(out + row * D + b, rb, mask=inside)
        xa, xb = ra.to(tl.float32), rb.to(tl.float32)
    if ROWS:
        if FIRST >= 0 or AFFINE:
            mean = (tl.sum(xa, 0) + tl.sum(xb, 0)) / D
            ca, cb = xa - mean, tl.where(inside, xb - mean, 0.0)
            root = 1.0 / tl.sqrt((tl.sum(ca * ca, 0) + tl.sum(cb * cb, 0)) / D + eps)
            xa, xb = ca * root, cb * root
        if FIRST >= 0:
            sa = 1.0 + tl.load(table + (FIRST + 1) * D + a) + tl.load(of_time + (FIRST + 1) * D + a).to(tl.float32)
            ha = tl.load(table + FIRST * D + a) + tl.load(of_time + FIRST * D + a).to(tl.float32)
            sb = tl.load(table + (FIRST + 1) * D + b, mask=inside, other=0.0)
            sb += 1.0 + tl.load(of_time + (FIRST + 1) * D + b, mask=inside, other=0.0).to(tl.float32)
            hb = tl.load(table + FIRST * D + b, mask=inside, other=0.0)
            hb += tl.load(of_time + FIRST * D + b, mask=inside, other=0.0).to(tl.float32)
            xa, xb = xa * sa + ha, xb * sb + hb
        if AFFINE:
            xa = xa * tl.load(weight + a).to(tl.float32) + tl.load(bias + a).to(tl.float32)
            xb = xb * tl.load(weight + b, mask=inside, other=0.0).to(tl.float32)
            xb += tl.load(bias + b, mask=inside, other=0.0).to(tl.float32)
        xa -= tl.load(mean_in + a)
        xb -= tl.load(mean_in + b, mask=inside, other=0.0)
        scale = _rows_scale(tl.maximum(tl.max(tl.abs(xa), 0), tl.max(tl.abs(xb), 0)))
        tl.store(s + row, scale)
        tl.store(q + row * D + a, _to_e4m3(xa / scale))
        tl.store(q + row * D + b, _to_e4m3(xb / scale), mask=inside)


@triton.jit
def _rms_pairs(base, weight, pairs, inside, eps, D: tl.constexpr):
    """RMSNorm of a row given as even and odd numbers."""
    even = tl.load(base + 2 * pairs, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(base + 2 * pairs + 1, mask=inside, other=0.0).to(tl.float32)
    root = 1.0 / tl.sqrt((tl.sum(even * even, 0) + tl.sum(odd * odd, 0)) / D + eps)
    even *= root * tl.load(weight + 2 * pairs, mask=inside, other=0.0).to(tl.float32)
    odd *= root * tl.load(weight + 2 * pairs + 1, mask=inside, other=0.0).to(tl.float32)
    return even, odd


@triton.jit
def _heads_kernel(
    qkv, query_norm, key_norm, cos, sin, q, k, v, q_scale, k_scale, v_scale, rotations, eps,
    D: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """HALF: half of a head; PAIRS: half of D, up to a power of two; BLOCK: D, likewise. rotations: rows of cos, sin."""
    row = tl.program_id(0).to(tl.int64)
    pairs = tl.arange(0, PAIRS)
    inside = pairs < D // 2
    angle = (row % rotations) * HALF + pairs % HALF
    c, s = tl.load(cos + angle), tl.load(sin + angle)
    even, odd = _rms_pairs(qkv + row * 3 * D, query_norm, pairs, inside, eps, D)
    turned = tl.interleave(even * c - odd * s, even * s + odd * c)
    whole = tl.arange(0, 2 * PAIRS)
    if SCALED:
        tl.store(q + row * D + whole, _to_e4m3(turned * tl.load(q_scale)), mask=whole < D)
    else:
        tl.store(q + row * D + whole, turned.to(q.dtype.element_ty), mask=whole < D)
    even, odd = _rms_pairs(qkv + row * 3 * D + D, key_norm, pairs, inside, eps, D)
    keys = tl.interleave(even, odd)
    values = tl.load(qkv + row * 3 * D + 2 * D + whole, mask=whole < D, other=0.0).to(tl.float32)
    if SCALED:
        keys, values = keys * tl.load(k_scale), values * tl.load(v_scale)
    tl.store(k + row * D + whole, keys.to(k.dtype.element_ty), mask=whole < D)
    tl.store(v + row * D + whole, values.to(v.dtype.element_ty), mask=whole < D)


@triton.jit
def _join_kernel(
    outputs, sums, descale, offset, out, tokens,
    D: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """PARTS 1: without sums."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < D
    weighted = tl.zeros((BLOCK,), tl.float32)
    factor = tl.load(descale)
    if PARTS == 1:
        weighted = tl.load(outputs + row * D + i, mask=inside, other=0.0).to(tl.float32)
    else:
        at = (i // (D // HEADS)) * tokens + row
        largest = tl.load(sums + at, mask=inside, other=0.0)
        for part in tl.static_range(1, PARTS):
            largest = tl.maximum(largest, tl.load(sums + part * HEADS * tokens + at, mask=inside, other=0.0))
        weights = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            weight = tl.exp(tl.load(sums + part * HEADS * tokens + at, mask=inside, other=0.0) - largest)
            given = tl.load(outputs + (part * tokens + row) * D + i, mask=inside, other=0.0).to(tl.float32)
            weights += weight
            weighted += weight * given
        weighted = weighted / weights
    total = weighted * factor + tl.load(offset + i, mask=inside, other=0.0)
    tl.store(out + row * D + i, total.to(out.dtype.element_ty), mask=inside)


def _blocks(width: int) -> tuple[int, int]:
    """The largest power of two in width, and the smallest that holds the rest (16 at least)."""
    first = 1 << (width.bit_length() - 1)
    return first, max(triton.next_power_of_2(width - first), 16)


def _warps(width: int) -> int:
    return min(1 << max(width // 512, 1).bit_length() - 1, 8)


def _empty_rows(count: int, width: int, device: torch.device) -> Rows:
    return torch.empty((count, width), dtype=E4M3, device=device), torch.empty((count, 1), device=device)


def gelu_rows(x: torch.Tensor, mean: torch.Tensor) -> Rows:
    """See `fp8_kernels.gelu_rows`."""
    width = x.shape[-1]
    flat = x.reshape(-1, width)
    q, s = _empty_rows(flat.shape[0], width, x.device)
    a, b = _blocks(width)
    _gelu_kernel[(flat.shape[0],)](flat, mean, q, s, D=width, A=a, B=b, num_warps=_warps(width))
    return q, s


def _normed(
    hidden: torch.Tensor,
    update: torch.Tensor | None,
    modulation: Modulation,
    eps: float,
    *,
    gate: int = -1,
    first: int = -1,
    norm: tuple[torch.Tensor, torch.Tensor] | None = None,
    mean: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Rows]:
    """mean None: only the sum, no rows."""
    assert hidden.is_contiguous(), hidden.stride()
    width, count = hidden.shape[-1], hidden[..., 0].numel()
    table, time = modulation.table.float().contiguous(), modulation.time.contiguous()
    out = hidden if update is None else torch.empty_like(hidden)
    q, s = _empty_rows(0 if mean is None else count, width, hidden.device)
    a, b = _blocks(width)
    weight, bias = (hidden, hidden) if norm is None else norm
    _norm_kernel[(count,)](
        hidden,
        hidden if update is None else update.contiguous(),
        table,
        time,
        weight,
        bias,
        hidden if mean is None else mean,
        out,
        q,
        s,
        count // (time.shape[0] * time.shape[1]),
        eps,
        D=width,
        A=a,
        B=b,
        UPDATE=update is not None,
        GATE=gate,
        FIRST=first,
        AFFINE=norm is not None,
        ROWS=mean is not None,
        num_warps=_warps(2 * width),
    )
    return out, (q, s)


def modulated_rows(
    hidden: torch.Tensor,
    update: torch.Tensor | None,
    modulation: Modulation,
    first: int,
    mean: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, Rows]:
    """See `fp8_kernels.modulated_rows`."""
    return _normed(hidden, update, modulation, eps, first=first, mean=mean)


def affine_rows(
    hidden: torch.Tensor,
    update: torch.Tensor,
    modulation: Modulation,
    norm: tuple[torch.Tensor, torch.Tensor] | None,
    mean: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, Rows]:
    """See `fp8_kernels.affine_rows`."""
    return _normed(hidden, update, modulation, eps, gate=GATE, norm=norm, mean=mean)


def residual(hidden: torch.Tensor, update: torch.Tensor, modulation: Modulation) -> torch.Tensor:
    """See `fp8_kernels.residual`."""
    return _normed(hidden, update, modulation, 0.0, gate=GATE_MLP)[0]


def head_parts(
    qkv: torch.Tensor, norms: HeadNorms, heads: int, eps: float, scales: Fp8Scales | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `fp8_kernels.head_parts`."""
    batch, tokens, width = qkv.shape
    dim = width // 3
    shape = (batch, tokens, heads, dim // heads)
    q = torch.empty(shape, dtype=qkv.dtype if scales is None else E4M3, device=qkv.device)
    k, v = (torch.empty(shape, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    cos, sin = (x.float().contiguous() for x in (norms.cos, norms.sin))
    one = cos if scales is None else None
    factors = (one, one, one) if scales is None else (scales.queries, scales.keys, scales.values)
    pairs = triton.next_power_of_2(dim // 2)
    _heads_kernel[(batch * tokens,)](
        qkv.contiguous(),
        norms.query,
        norms.key,
        cos,
        sin,
        q,
        k,
        v,
        *factors,
        cos.numel() // (shape[-1] // 2),
        eps,
        D=dim,
        HALF=shape[-1] // 2,
        PAIRS=pairs,
        BLOCK=2 * pairs,
        SCALED=scales is not None,
        num_warps=_warps(2 * dim),
    )
    return q, k, v


def join(
    outputs: torch.Tensor, sums: torch.Tensor | None, descale: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """See `fp8_kernels.join`."""
    batch, tokens, heads, dim = outputs.shape
    parts = 1 if sums is None else batch
    out = torch.empty((batch // parts, tokens, heads, dim), dtype=dtype, device=outputs.device)
    width = heads * dim
    _join_kernel[(batch // parts * tokens,)](
        outputs,
        descale if sums is None else sums,
        descale,
        offset,
        out,
        tokens,
        D=width,
        HEADS=heads,
        PARTS=parts,
        BLOCK=triton.next_power_of_2(width),
        num_warps=_warps(width),
    )
    return out


TRITON_FP8_KERNELS = Fp8Kernels(
    modulated_rows=modulated_rows,
    affine_rows=affine_rows,
    residual=residual,
    gelu_rows=gelu_rows,
    head_parts=head_parts,
    join=join,
)
"""Kernels for CUDA devices."""
