"""Owns the memory of unrotated keys and values: as given, or as 8-bit integers with a scale per token and head.

Stores only: no rotation, no policy. Everything is allocated once, here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """The sizes of a cache.

    grid: (rows, columns) of tokens in a latent frame; cache_rows: independent histories.
    """

    layers: int
    heads: int
    head_dim: int
    grid: tuple[int, int]
    cache_rows: int = 1
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[0] * self.grid[1]


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in at least float32, for sums and means."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Store(Protocol):
    """Unrotated keys and values of [layers, cache_rows, capacity] slots, each [H, D]."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory, each tensor [layers, cache_rows, capacity, ...]."""
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

    def __init__(self, shape: KVShape, capacity: int) -> None:
        size = (shape.layers, shape.cache_rows, capacity, shape.heads, shape.head_dim)
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

    def __init__(self, shape: KVShape, capacity: int) -> None:
        size = (shape.layers, shape.cache_rows, capacity, shape.heads, shape.head_dim)
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
