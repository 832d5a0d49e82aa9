"""Owns attention over parts of the keys in parallel: how many parts fill a CUDA device, and how they are merged.

cuDNN's kernel assigns a block of 128 queries of one head to a multiprocessor. 12 heads of 4680 queries make 444 blocks,
3.4 for each of an H100's 132 multiprocessors, so that the device idles for most of a fourth wave; 1560 queries make
1.2. With s parts of the keys there are s times as many blocks, each s times shorter, and the last wave costs less.
Parts are merged by their log-sum-exps l_i as in flash-decoding (Dao et al. 2023): sum_i exp(l_i - l) o_i with
l = log sum_i exp(l_i).
Independent of layers, the cache and the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from pipelines.core.compiling import compiled

BLOCK_QUERIES = 128
MAX_PARTS = 8
MIN_PART_KEYS = 1024
_WAVE_KEYS = 128
"""Fixed cost of a wave of blocks, in keys."""
_MERGE_KEYS = 5.6e-5
"""Cost of reading or writing one number of a part's result, in keys of a block."""


def parts_of_keys(queries: torch.Tensor, keys: torch.Tensor) -> int:
    """Return into how many equal parts to split keys [B, M, heads, D] for queries [B, N, heads, D]; 1 for few keys."""
    if keys.shape[1] < 2 * MIN_PART_KEYS or not (keys.shape[0] == 1 or keys.is_contiguous()):
        return 1
    return best_parts(
        blocks=queries.shape[0] * queries.shape[2] * -(-queries.shape[1] // BLOCK_QUERIES),
        keys=keys.shape[1],
        numbers=queries.numel(),
        multiprocessors=_multiprocessors(queries.device),
    )


def best_parts(*, blocks: int, keys: int, numbers: int, multiprocessors: int) -> int:
    """Return the fastest number of parts, a divisor of `keys`. numbers: size of the result. Host arithmetic only."""

    def cost(parts: int) -> float:
        waves = -(-blocks * parts // multiprocessors)
        merge = _MERGE_KEYS * numbers * (2 * parts + 1) if parts > 1 else 0.0
        return waves * (keys / parts + _WAVE_KEYS) + merge

    fitting = [n for n in range(1, MAX_PARTS + 1) if keys % n == 0 and (n == 1 or keys // n >= MIN_PART_KEYS)]
    return min(fitting, key=cost)


def cudnn_in_parts(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, parts: int) -> torch.Tensor:
    """[B, N, heads, D], [B, M, heads, D] twice -> [B, N, heads, D]; parts divides M. CUDA, 16 bits."""
    batch, tokens, heads, dim = queries.shape
    repeated = queries.expand(parts, -1, -1, -1) if batch == 1 else queries.repeat_interleave(parts, 0)
    cut_keys, cut_values = (x.reshape(batch * parts, -1, heads, dim).transpose(1, 2) for x in (keys, values))
    outputs, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        repeated.transpose(1, 2), cut_keys, cut_values, None, True
    )
    outputs = outputs.transpose(1, 2).reshape(batch, parts, tokens, heads, dim)
    return _compiled_join()(outputs, sums.reshape(batch, parts, heads, tokens))


def join(outputs: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Merge outputs [B, parts, N, heads, D] over parts of the keys, with their log-sum-exps [B, parts, heads, N]
    float32, into the attention over all keys [B, N, heads, D].
    """
    parts = [part.transpose(1, 2).unsqueeze(-1) for part in sums.unbind(1)]
    largest = functools.reduce(torch.maximum, parts)
    weights = [torch.exp(part - largest) for part in parts]
    weighted = [weight * output for weight, output in zip(weights, outputs.unbind(1), strict=True)]
    return (functools.reduce(torch.add, weighted) / functools.reduce(torch.add, weights)).to(outputs.dtype)


@functools.cache
def _compiled_join() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return compiled(join)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
