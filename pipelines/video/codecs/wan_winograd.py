"""Owns Triton kernels for the Wan decoder's convolutions over three frames: two frames at a time, a third less work.

Winograd's F(2, 3) along time (Lavin and Gray, arXiv 1509.09308): with frames d0 to d3 and the weights g0, g1, g2 of the
three, m0 = (d0 - d2) g0, m1 = (d1 + d2)(g0 + g1 + g2)/2, m2 = (d2 - d1)(g0 - g1 + g2)/2 and m3 = (d3 - d1) g2 give
y0 = m0 + m1 + m2 and y1 = m3 + m1 - m2, four products instead of six. The norm and SiLU in front write the four sums
of frames. Each is a picture with a row and a column of zeros behind its last, which serve as the borders on both sides:
a tile is a run of pixels of any picture size, and a weight's place is a shift of the run. Independent of modules and of
streams. Imported only on CUDA devices with Triton.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202, N803, N806

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[import-not-found, unused-ignore]


class PairTile(NamedTuple):
    """Pixels and channels of a tile, the two blocks of output channels, warps, pipeline stages."""

    pixels: int
    channels: int
    first: int
    second: int
    warps: int
    stages: int


@triton.jit
def _normed(y, gamma, inside, root):
    x = tl.load(y, mask=inside, other=0.0).to(tl.float32)
    x = x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None] * root * gamma
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _norm_pairs_kernel(
    y, gamma, past, out, T, H, W, root, C: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """P pixels of all frames of a batch entry."""
    p = tl.program_id(0) * P + tl.arange(0, P)
    batch = tl.program_id(1).to(tl.int64)
    row, column, c = p // (W + 1), p % (W + 1), tl.arange(0, BLOCK)
    exists = (p < (H + 1) * (W + 1))[:, None] & (c < C)[None, :]
    inside = ((row < H) & (column < W))[:, None] & (c < C)[None, :]
    source = (row * W + column)[:, None].to(tl.int64) * C + c[None, :]
    scale = tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    frame, plane = H * W * C, (H + 1) * (W + 1) * C
    before = past + batch * 2 * frame + source
    d0 = tl.load(before, mask=inside, other=0.0).to(tl.float32)
    d1 = tl.load(before + frame, mask=inside, other=0.0).to(tl.float32)
    given = y + batch * T * frame + source
    to = out + batch * ((T + 1) // 2 * 4) * plane + p[:, None].to(tl.int64) * C + c[None, :]
    kind = out.dtype.element_ty
    for f in range(0, T, 2):
        both = f + 1 < T
        d2 = _normed(given, scale, inside, root)
        d3 = _normed(given + frame, scale, inside & both, root)
        given += frame
        given += frame
        tl.store(to, (d1 + d2).to(kind), mask=exists)
        to += plane
        tl.store(to, (d2 - d1).to(kind), mask=exists)
        to += plane
        tl.store(to, (d0 - d2).to(kind), mask=exists)
        to += plane
        tl.store(to, (d3 - d1).to(kind), mask=exists)
        to += plane
        d0 = tl.where(both, d2, d1)
        d1 = tl.where(both, d3, d2)
    tl.debug_barrier()
    tl.store(before, d0.to(kind), mask=inside)
    tl.store(before + frame, d1.to(kind), mask=inside)


@triton.jit
def _store(
    acc, bias, shortcut, y, frame, p, n, keep, H, W, COUT: tl.constexpr, N: tl.constexpr, SHORTCUT: tl.constexpr
):
    channel = n + tl.arange(0, N)
    row, column = p // (W + 1), p % (W + 1)
    inside = ((row < H) & (column < W) & keep)[:, None]
    at = ((frame * H + row) * W + column)[:, None].to(tl.int64) * COUT + channel[None, :]
    total = acc + tl.load(bias + channel).to(tl.float32)[None, :]
    if SHORTCUT:
        total += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _pair_kernel(
    x, w0, w1, bias, shortcut, y, B, T, H, W,
    CIN: tl.constexpr, COUT: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    N0: tl.constexpr, N1: tl.constexpr, STAGES: tl.constexpr, SHORTCUT: tl.constexpr,
):  # fmt: skip
    """Pairs of frames are the fastest axis of the programs: those that share weights and lines run together.

    The sum and difference of m1 and m2 are made in place, so that the accumulators fit in registers.
    """
    pid = tl.program_id(0)
    pairs = (T + 1) // 2
    pair = pid % (B * pairs)
    p = pid // (B * pairs) * BM
    n = tl.program_id(1) * (N0 + N1)
    STEPS: tl.constexpr = CIN // BC
    size = (H + 1) * (W + 1)
    start = pair * 4 * size + p
    even0 = tl.zeros((BM, N0), tl.float32)
    even1 = tl.zeros((BM, N1), tl.float32)
    odd0 = tl.zeros((BM, N0), tl.float32)
    odd1 = tl.zeros((BM, N1), tl.float32)
    for i in tl.range(0, 9 * STEPS, num_stages=STAGES):
        tap = i // STEPS
        c = (i % STEPS) * BC
        k = tap * CIN + c
        at = start + (tap // 3 - 1) * (W + 1) + tap % 3 - 1
        a = x.load([at, c])
        b = x.load([at + size, c])
        even0 = tl.dot(a, w0.load([n, k]).T, even0)
        odd0 = tl.dot(b, w0.load([COUT + n, k]).T, odd0)
        even1 = tl.dot(a, w1.load([n + N0, k]).T, even1)
        odd1 = tl.dot(b, w1.load([COUT + n + N0, k]).T, odd1)
    even0 = even0 + odd0
    even1 = even1 + odd1
    odd0 = even0 - 2.0 * odd0
    odd1 = even1 - 2.0 * odd1
    for i in tl.range(0, 9 * STEPS, num_stages=STAGES):
        tap = i // STEPS
        c = (i % STEPS) * BC
        k = tap * CIN + c
        at = start + 2 * size + (tap // 3 - 1) * (W + 1) + tap % 3 - 1
        a = x.load([at, c])
        b = x.load([at + size, c])
        even0 = tl.dot(a, w0.load([2 * COUT + n, k]).T, even0)
        odd0 = tl.dot(b, w0.load([3 * COUT + n, k]).T, odd0)
        even1 = tl.dot(a, w1.load([2 * COUT + n + N0, k]).T, even1)
        odd1 = tl.dot(b, w1.load([3 * COUT + n + N0, k]).T, odd1)
    m = p + tl.arange(0, BM)
    frame = pair // pairs * T + pair % pairs * 2
    both = pair % pairs * 2 + 1 < T
    _store(even0, bias, shortcut, y, frame, m, n, True, H, W, COUT, N0, SHORTCUT)
    _store(even1, bias, shortcut, y, frame, m, n + N0, True, H, W, COUT, N1, SHORTCUT)
    _store(odd0, bias, shortcut, y, frame + 1, m, n, both, H, W, COUT, N0, SHORTCUT)
    _store(odd1, bias, shortcut, y, frame + 1, m, n + N0, both, H, W, COUT, N1, SHORTCUT)


def norm_pairs(y: torch.Tensor, gamma: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """SiLU(y / |y| sqrt(C) gamma) of frames y [B, t, h, w, C] -> their sums [B, (t + 1) // 2, 4, h + 1, w + 1, C].

    A missing last frame is zeros. past [B, 2, h, w, C]: the two normed frames before; overwritten with the last two.
    """
    batch, count, height, width, channels = y.shape
    pairs, block = (count + 1) // 2, triton.next_power_of_2(channels)
    shape = (batch, pairs, 4, height + 1, width + 1, channels)
    out = torch.empty(shape, dtype=y.dtype, device=y.device)
    tokens = max(2048 // block, 1)
    grid = (triton.cdiv((height + 1) * (width + 1), tokens), batch)
    _norm_pairs_kernel[grid](
        y, gamma, past, out, count, height, width, float(channels**0.5), C=channels, P=tokens, BLOCK=block, num_warps=4
    )
    return out


def pair_conv(
    sums: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shortcut: torch.Tensor | None,
    frames: int,
    tile: PairTile,
) -> torch.Tensor:
    """Sums from `norm_pairs` of so many frames, weight from `pair_weights` -> [B, frames, h, w, N].

    shortcut: added to the result, in its shape; None: nothing.
    """
    batch, _, _, height, width, channels = sums.shape
    height, width, outputs = height - 1, width - 1, bias.shape[0]
    assert fits(channels, outputs, tile), (channels, outputs, tile)
    y = torch.empty((batch, frames, height, width, outputs), dtype=sums.dtype, device=sums.device)
    x = TensorDescriptor.from_tensor(sums.view(-1, channels), [tile.pixels, tile.channels])
    w0, w1 = (TensorDescriptor.from_tensor(weight, [block, tile.channels]) for block in (tile.first, tile.second))
    tiles = triton.cdiv(height * (width + 1), tile.pixels)
    grid = (batch * ((frames + 1) // 2) * tiles, outputs // (tile.first + tile.second))
    sizes = (channels, outputs, tile.pixels, tile.channels, tile.first, tile.second, tile.stages)
    _pair_kernel[grid](
        x,
        w0,
        w1,
        bias,
        y if shortcut is None else shortcut,
        y,
        batch,
        frames,
        height,
        width,
        *sizes,
        SHORTCUT=shortcut is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


def pair_weights(weight: torch.Tensor) -> torch.Tensor:
    """[N, C, 3, 3, 3] -> [4 N, 9 C]: sums of frames, output channels; places in h, w, input channels."""
    first, middle, last = weight.float().permute(2, 0, 3, 4, 1).flatten(2)
    ends = (first + last) / 2
    return torch.cat([ends + middle / 2, ends - middle / 2, first, last]).to(weight.dtype).contiguous()


def shortened(tile: PairTile, shared_memory: int) -> PairTile:
    """The tile with as many stages as that many bytes hold: two frames and their weights, in 16 bits."""
    stage = 2 * (tile.pixels + tile.first + tile.second) * tile.channels * 2
    return tile._replace(stages=min(tile.stages, max(shared_memory // stage, 1)))


def shared_memory_of(device: torch.device) -> int:
    """Bytes of shared memory that a program may use on a CUDA device: 227 KiB on Hopper, 99 KiB on consumer cards."""
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"])


def fits(channels: int, outputs: int, tile: PairTile) -> bool:
    """Whether a convolution's input and output channels are multiples of the tile's."""
    return not channels % tile.channels and not outputs % (tile.first + tile.second)
