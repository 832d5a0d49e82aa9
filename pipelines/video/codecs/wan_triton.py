"""Owns Triton kernels for the Wan decoder: upsampling, its last convolution, and what stands between cuDNN's.

Activations are [B, t, h, w, C], contiguous. A convolution is an implicit matrix product: tiles of pixels are loaded by
the tensor memory accelerator, once for each weight's place, which also gives the zeros beyond the borders. Independent
of modules and of streams. Imported only on CUDA devices with Triton.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202, N803, N806

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found, unused-ignore]

HISTORY_FRAMES = 2


class Tile(NamedTuple):
    """Pixels (rows × columns) and channels of a tile, the two blocks of output channels, warps, pipeline stages."""

    rows: int
    columns: int
    channels: int
    first: int
    second: int
    warps: int
    stages: int


@triton.jit
def _store(acc, bias, y, pixel, exists, n, COUT: tl.constexpr, N: tl.constexpr):
    channel = n + tl.arange(0, N)
    inside = exists[:, None] & (channel < COUT)[None, :]
    total = acc + tl.load(bias + channel, mask=channel < COUT, other=0.0).to(tl.float32)[None, :]
    at = pixel[:, None].to(tl.int64) * COUT + channel[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _upsample_kernel(
    x, w0, w1, bias, y, H, W,
    CIN: tl.constexpr, COUT: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One of the four phases (row and column parity) of a 3×3 convolution over a picture of twice the size."""
    pid, phase = tl.program_id(0), tl.program_id(1)
    across, along = tl.cdiv(W, BW), tl.cdiv(H, BH)
    column = pid % across * BW
    line = pid // across % along * BH
    frame = pid // (across * along)
    down, right = phase // 2, phase % 2
    BM: tl.constexpr = BH * BW
    STEPS: tl.constexpr = CIN // BC
    acc0 = tl.zeros((BM, N0), tl.float32)
    acc1 = tl.zeros((BM, N1 if N1 > 0 else 16), tl.float32)
    for i in tl.range(0, 4 * STEPS, num_stages=STAGES):
        tap = i // STEPS
        c = (i % STEPS) * BC
        a = x.load([frame, line + down - 1 + tap // 2, column + right - 1 + tap % 2, c]).reshape(BM, BC)
        acc0 = tl.dot(a, w0.load([phase * COUT, tap * CIN + c]).T, acc0)
        if N1 > 0:
            acc1 = tl.dot(a, w1.load([phase * COUT + N0, tap * CIN + c]).T, acc1)
    m = tl.arange(0, BM)
    pixel = (frame * 2 * H + 2 * (line + m // BW) + down) * 2 * W + 2 * (column + m % BW) + right
    exists = (line + m // BW < H) & (column + m % BW < W)
    _store(acc0, bias, y, pixel, exists, 0, COUT, N0)
    if N1 > 0:
        _store(acc1, bias, y, pixel, exists, N0, COUT, N1)


@triton.jit
def _gather_kernel(
    products, bias, y, pixels, plane, H, W, T, N: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """Sum, for each pixel and output channel, the 27 products of its neighbours. plane: numbers of one product."""
    p = tl.program_id(0) * P + tl.arange(0, P)
    n = tl.program_id(1)
    column, line, frame = p % W, (p // W) % H, p // (W * H)
    source = frame // T * (T + 2) + frame % T
    total = tl.zeros((P,), tl.float32) + tl.load(bias + n).to(tl.float32)
    for tap in tl.static_range(27):
        h, w = line + (tap // 3) % 3 - 1, column + tap % 3 - 1
        inside = (p < pixels) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        at = ((source + tap // 9) * H + h) * W + w
        of_tap = products + (tap * N + n).to(tl.int64) * plane
        total += tl.load(of_tap + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + p.to(tl.int64) * N + n, total.to(y.dtype.element_ty), mask=p < pixels)


@triton.jit
def _norm_kernel(
    y, bias, shortcut, gamma, total, out, pixels, frames, size, root,
    C: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    BIAS: tl.constexpr, SHORTCUT: tl.constexpr, TOTAL: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """size: pixels of a frame. out has HISTORY_FRAMES more frames in front of each batch entry's."""
    p = tl.program_id(0) * P + tl.arange(0, P)
    c = tl.arange(0, BLOCK)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    at = p[:, None].to(tl.int64) * C + c[None, :]
    x = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if SHORTCUT:
        x += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    if TOTAL:
        rounded = x.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if NORM:
        length = tl.sqrt(tl.sum(x * x, 1))
        x = (
            x
            / tl.maximum(length, 1e-12)[:, None]
            * root
            * tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        )
        x = x / (1.0 + tl.exp(-x))
        frame = p // size
        target = (frame // frames * (frames + 2) + 2 + frame % frames) * size + p % size
        tl.store(out + target[:, None].to(tl.int64) * C + c[None, :], x.to(out.dtype.element_ty), mask=inside)


def narrow_conv(frames: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """frames [B, HISTORY_FRAMES + t, h, w, C], weight [27 N, C] from `narrow_weights` -> [B, t, h, w, N]. For small N:
    one product for all 27 places, whose results are gathered: a pixel's channels are read once, and not 27 times.
    """
    batch, length, height, width, channels = frames.shape
    count, outputs = length - HISTORY_FRAMES, weight.shape[0] // 27
    products = weight @ frames.reshape(-1, channels).t()
    y = torch.empty((batch, count, height, width, outputs), dtype=frames.dtype, device=frames.device)
    pixels = batch * count * height * width
    grid = (triton.cdiv(pixels, 1024), outputs)
    _gather_kernel[grid](
        products, bias, y, pixels, products.shape[1], height, width, count, N=outputs, P=1024, num_warps=4
    )
    return y


def upsampled_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, tile: Tile) -> torch.Tensor:
    """x [B, t, h, w, C], weight [4 N, 4 C] from `phase_weights` -> [B, t, 2 h, 2 w, N]."""
    batch, count, height, width, channels = x.shape
    outputs = weight.shape[0] // 4
    y = torch.empty((batch, count, 2 * height, 2 * width, outputs), dtype=x.dtype, device=x.device)
    source, w0, w1 = _descriptors(x.flatten(0, 1), weight, tile)
    grid = (batch * count * triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns), 4)
    sizes = (channels, outputs, tile.rows, tile.columns, tile.channels, tile.first, tile.second, tile.stages)
    _upsample_kernel[grid](source, w0, w1, bias, y, height, width, *sizes, num_warps=tile.warps, num_stages=tile.stages)
    return y


def add_norm_silu(
    y: torch.Tensor,
    bias: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    gamma: torch.Tensor | None,
    out: torch.Tensor | None,
    *,
    keep: bool,
) -> torch.Tensor:
    """x = y + bias + shortcut over [B, t, h, w, C]; SiLU(x / |x| sqrt(C) gamma) into the last t frames of out.

    gamma None: no norm. Returns x if it differs from y and is kept, else y.
    """
    batch, count, height, width, channels = y.shape
    pixels, block = batch * count * height * width, triton.next_power_of_2(channels)
    changes = keep and (bias is not None or shortcut is not None)
    total = torch.empty_like(y) if changes else y
    tokens = max(8192 // block, 1)
    _norm_kernel[(triton.cdiv(pixels, tokens),)](
        y,
        y if bias is None else bias,
        y if shortcut is None else shortcut,
        y if gamma is None else gamma,
        total,
        y if out is None else out,
        pixels,
        count,
        height * width,
        float(channels**0.5),
        C=channels,
        P=tokens,
        BLOCK=block,
        BIAS=bias is not None,
        SHORTCUT=shortcut is not None,
        TOTAL=changes,
        NORM=gamma is not None,
        num_warps=4,
    )
    return total


def narrow_weights(weight: torch.Tensor) -> torch.Tensor:
    """[N, C, 3, 3, 3] -> [27 N, C]: places in t, h, w, then output channels."""
    return weight.permute(2, 3, 4, 0, 1).reshape(-1, weight.shape[1]).contiguous()


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """[N, C, 3, 3] -> [4 N, 4 C]: the sums of those weights that read the same pixel of the smaller picture.

    A pixel of an even row sees the row above once and its own twice, one of an odd row its own twice and the next once.
    """
    wide = weight.float()
    rows = (
        (wide[:, :, :1], wide[:, :, 1:].sum(2, keepdim=True)),
        (wide[:, :, :2].sum(2, keepdim=True), wide[:, :, 2:]),
    )
    phases = []
    for down in range(2):
        tall = torch.cat(rows[down], 2)
        for right in range(2):
            cut = [1, 2] if right == 0 else [2, 1]
            parts = [part.sum(3, keepdim=True) for part in torch.split(tall, cut, 3)]
            phases.append(torch.cat(parts, 3).permute(0, 2, 3, 1).flatten(1))
    return torch.cat(phases).to(weight.dtype).contiguous()


def fits(channels: int, tile: Tile) -> bool:
    """Whether the tile divides so many input channels."""
    return not channels % tile.channels


def _descriptors(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> tuple[TensorDescriptor, ...]:
    """Of x [frames, h, w, C] and of both blocks of the weight's rows."""
    blocks = (tile.first, tile.second or tile.first)
    return (
        TensorDescriptor.from_tensor(x, [1, tile.rows, tile.columns, tile.channels]),
        *(TensorDescriptor.from_tensor(weight, [block, tile.channels]) for block in blocks),
    )
