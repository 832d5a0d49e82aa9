"""Owns the work on keys and values that every pass repeats, as functions of tensors, so that a compiler can fuse it.

Works on tensors and flat slots; independent of rows, layers, spans and policies. Compiled and plain kernels agree up to
rounding in the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cache.kv.store import E4M3, converted, movable
from cache.rotary import rotate_pairs

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x [..., D], cos, sin broadcastable to [..., D/2]) -> x rotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVKernels:
    """rotate: see `Rotate`; rotate_into, write and write_rotated: the functions below."""

    rotate: Rotate
    rotate_into: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
    write: Callable[..., None]
    write_rotated: Callable[..., None]


def rotate_into(target: torch.Tensor, keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Write keys [n, H, D], rotated by cos, sin [n, 1 or H, D/2], to target [n, H, D], saturated if that is e4m3."""
    rotated = rotate_pairs(keys, cos, sin)
    target.copy_(rotated if target.dtype == rotated.dtype else converted(rotated, target.dtype))


def write(
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    index: torch.Tensor,
    rotated_index: torch.Tensor,
    stored_keys: torch.Tensor,
    stored_values: torch.Tensor,
    rotated_keys: torch.Tensor,
) -> None:
    """Write a pass's keys and values [B, N, H, D] to flat slots index [B, N] of stored_keys and stored_values
    [.., H, D], and the keys rotated by cos, sin [B, N, 1, D/2] to rotated_index of rotated_keys.
    """
    rotated = rotate_pairs(keys, cos, sin)
    slots, rotated_slots = index.reshape(-1), rotated_index.reshape(-1)
    stored_keys.index_copy_(0, slots, keys.flatten(0, 1).to(stored_keys.dtype))
    stored_values.index_copy_(0, slots, values.flatten(0, 1).to(stored_values.dtype))
    rotated_keys.index_copy_(0, rotated_slots, rotated.flatten(0, 1).to(rotated_keys.dtype))


def write_rotated(
    keys: torch.Tensor,
    values: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    index: torch.Tensor,
    rotated_keys: torch.Tensor,
    stored_values: torch.Tensor,
) -> None:
    """Write a pass's keys, rotated by cos, sin [B, N, 1, D/2], and its values [B, N, H, D] to flat slots index [B, N]
    of rotated_keys and stored_values [.., H, D]. Those of uint8 are the bytes of e4m3, which saturates: a view made in
    here would have the compiler copy the whole memory twice.
    """
    slots = index.reshape(-1)
    for target, x in ((rotated_keys, rotate_pairs(keys, cos, sin)), (stored_values, values)):
        numbers = movable(converted(x, E4M3)) if target.dtype == torch.uint8 else x.to(target.dtype)
        target.index_copy_(0, slots, numbers.flatten(0, 1))


PLAIN_KERNELS = KVKernels(rotate=rotate_pairs, rotate_into=rotate_into, write=write, write_rotated=write_rotated)
"""Not compiled."""


def compiled_kernels(compiler: str = "inductor") -> KVKernels:
    """Compiled by torch.compile at first use, to one or two kernels each. compiler: torch.compile's backend.

    `rotate_into` handles all lengths with one kernel; the others compile once per shape of a pass.
    """
    return KVKernels(
        rotate=torch.compile(rotate_pairs, backend=compiler, fullgraph=True, dynamic=False),
        rotate_into=torch.compile(rotate_into, backend=compiler, fullgraph=True),
        write=torch.compile(write, backend=compiler, fullgraph=True, dynamic=False),
        write_rotated=torch.compile(write_rotated, backend=compiler, fullgraph=True, dynamic=False),
    )
