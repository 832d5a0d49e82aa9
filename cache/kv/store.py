"""Owns the memory of keys and values: as given, as 8-bit integers with a scale per token and head, or with the keys
rotated.

Stores only: no rotation, no policy. Everything is allocated once, here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from cache.kv.policies.base import KVPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """The sizes of a cache.

    grid: (rows, columns) of tokens in a latent frame; cache_rows: independent histories. boundaries: layers, ascending
    and after the first, whose inputs are stored as well, so that frames can be passed again from there on.
    """

    layers: int
    heads: int
    head_dim: int
    grid: tuple[int, int]
    cache_rows: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    boundaries: tuple[int, ...] = ()

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[0] * self.grid[1]


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in at least float32, for sums and means."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0


def converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in another dtype; for e4m3, which has no infinity, saturated at its largest number."""
    if dtype == E4M3 and x.dtype != E4M3:
        return x.clamp(-E4M3_MAX, E4M3_MAX).to(dtype)
    return x.to(dtype)


def movable(x: torch.Tensor) -> torch.Tensor:
    """x, or the bytes of e4m3, for which PyTorch has no indexing kernels."""
    return x.view(torch.uint8) if x.dtype == E4M3 else x


class Store(Protocol):
    """Unrotated keys and values of [layers, cache_rows, capacity] slots, each [H, D]."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory that must be copied and moved with its tokens, each tensor [layers, cache_rows, capacity, ...]."""
        ...

    def write(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys, values [n, H, D] to flat slots (row * capacity + slot) [n] int64."""
        ...

    def keys(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        """Unrotated keys [rows, slots, H, D] in the cache's dtype; a view if they are stored in it."""
        ...

    def values(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        """Values [rows, slots, H, D]; otherwise as `keys`."""
        ...

    def take(self, layer: int, row: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the keys and values [n, H, D] of one row's slots [n] int64."""
        ...


class NativeStore:
    """Keys and values in the cache's dtype."""

    def __init__(self, shape: KVShape, policy: KVPolicy) -> None:
        size = (shape.layers, shape.cache_rows, policy.capacity_tokens, shape.heads, shape.head_dim)
        self._keys = torch.zeros(size, dtype=shape.dtype, device=shape.device)
        self._values = torch.zeros(size, dtype=shape.dtype, device=shape.device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self._keys, self._values

    def write(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._keys[layer].flatten(0, 1).index_copy_(0, index, keys.to(self._keys.dtype))
        self._values[layer].flatten(0, 1).index_copy_(0, index, values.to(self._values.dtype))

    def keys(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        return self._keys[layer, rows, slots]

    def values(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        return self._values[layer, rows, slots]

    def take(self, layer: int, row: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys[layer, row].index_select(0, index), self._values[layer, row].index_select(0, index)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., D] -> int8 [..., D] and float32 scale [..., 1]: x is about q * scale, with |error| <= scale / 2."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / 127.0
    return (x.float() / scale).round_().clamp_(-127, 127).to(torch.int8), scale


class Int8Store:
    """int8 with one float32 scale per token and head: (D + 4) / (2 D) of the memory of 16-bit storage."""

    def __init__(self, shape: KVShape, policy: KVPolicy) -> None:
        size = (shape.layers, shape.cache_rows, policy.capacity_tokens, shape.heads, shape.head_dim)
        self._dtype = shape.dtype
        self._keys, self._values = (torch.zeros(size, dtype=torch.int8, device=shape.device) for _ in range(2))
        self._key_scales, self._value_scales = (
            torch.zeros((*size[:-1], 1), dtype=torch.float32, device=shape.device) for _ in range(2)
        )

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self._keys, self._values, self._key_scales, self._value_scales

    def write(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        for stored, scales, x in (
            (self._keys, self._key_scales, keys),
            (self._values, self._value_scales, values),
        ):
            quantised, scale = quantise(x)
            stored[layer].flatten(0, 1).index_copy_(0, index, quantised)
            scales[layer].flatten(0, 1).index_copy_(0, index, scale)

    def keys(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        return (self._keys[layer, rows, slots] * self._key_scales[layer, rows, slots]).to(self._dtype)

    def values(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        return (self._values[layer, rows, slots] * self._value_scales[layer, rows, slots]).to(self._dtype)

    def take(self, layer: int, row: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._keys[layer, row].index_select(0, index) * self._key_scales[layer, row].index_select(0, index)
        values = self._values[layer, row].index_select(0, index) * self._value_scales[layer, row].index_select(0, index)
        return keys.to(self._dtype), values.to(self._dtype)


class RotatedStore:
    """Rotated keys and values in one dtype. Unrotated keys, in the cache's dtype, only if the policy needs them.

    rotated, values: [layers, cache_rows, capacity, H, D]; unrotated: the same, or None if the distances between kept
    frames never change, so that a key is rotated once and for all.
    """

    def __init__(self, shape: KVShape, policy: KVPolicy, dtype: torch.dtype | None = None) -> None:
        size = (shape.layers, shape.cache_rows, policy.capacity_tokens, shape.heads, shape.head_dim)
        self._dtype = shape.dtype
        self.rotated, self.values_memory = (
            torch.zeros(size, dtype=dtype or shape.dtype, device=shape.device) for _ in range(2)
        )
        self.unrotated = None if policy.keeps_distances else torch.zeros(size, dtype=shape.dtype, device=shape.device)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Values and unrotated keys; rotated keys instead if there are no others to renew them from."""
        keys = self.rotated if self.unrotated is None else self.unrotated
        return movable(keys), movable(self.values_memory)

    def write(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert self.unrotated is not None, "the policy declared that it needs no unrotated keys"
        for stored, x in ((self.unrotated, keys), (self.values_memory, values)):
            movable(stored[layer]).flatten(0, 1).index_copy_(0, index, movable(converted(x, stored.dtype)))

    def keys(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        assert self.unrotated is not None, "the policy declared that it needs no unrotated keys"
        return self.unrotated[layer, rows, slots]

    def values(self, layer: int, rows: slice, slots: slice) -> torch.Tensor:
        return self.values_memory[layer, rows, slots].to(self._dtype)

    def take(self, layer: int, row: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.unrotated is not None, "the policy declared that it needs no unrotated keys"
        values = movable(self.values_memory[layer, row]).index_select(0, index)
        values = values.view(self.values_memory.dtype).to(self._dtype)
        return self.unrotated[layer, row].index_select(0, index), values
