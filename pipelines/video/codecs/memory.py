"""Owns the state of a streaming autoencoder: one tensor for each layer that looks back, one row for each stream.

Works on tensors and integers; independent of layers and frames. Nothing here grows: only a snapshot without buffers
allocates, and its caller owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodecSnapshot:
    """A copy of the state of one row, for `restore`.

    features: one tensor [*shape] for each state tensor, in the order in which they were added; latents_done: how many
    latents the row had processed.
    """

    features: tuple[torch.Tensor, ...]
    latents_done: int

    @property
    def bytes(self) -> int:
        """Size of the snapshot."""
        return sum(feature.numel() * feature.element_size() for feature in self.features)


class FeatureMemory:
    """`rows` rows of state. Each layer requests its tensor once, by `add`; a row of zeros is the start of a stream."""

    def __init__(self, rows: int, *, device: torch.device, dtype: torch.dtype) -> None:
        assert rows >= 1, rows
        self.rows = rows
        self.device = device
        self.dtype = dtype
        self._tensors: list[torch.Tensor] = []  # [rows, *shape]
        self._channels_last: list[bool] = []

    def add(self, shape: Sequence[int], *, channels_last: bool) -> int:
        """Add a state tensor [rows, *shape] of zeros; return its slot. shape: channels first, however it is stored."""
        channels, *others = shape
        stored = (*others, channels) if channels_last else (channels, *others)
        with torch.inference_mode(False):
            state = torch.zeros((self.rows, *stored), device=self.device, dtype=self.dtype)
            self._tensors.append(state.movedim(-1, 1) if channels_last else state)
        self._channels_last.append(channels_last)
        return len(self._tensors) - 1

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the state tensors, without their row axis, in the order in which they were added."""
        return tuple(tuple(tensor.shape[1:]) for tensor in self._tensors)

    def addresses(self) -> tuple[int, ...]:
        """Addresses of the state tensors: constant for the memory's lifetime, so that CUDA graphs can capture them."""
        return tuple(tensor.data_ptr() for tensor in self._tensors)

    def read(self, slot: int, rows: torch.Tensor | None) -> torch.Tensor:
        """Read state `slot` of rows [B] int64 -> [B, *shape]; if rows is None, of all rows without a copy."""
        state = self._tensors[slot]
        if rows is None:
            return state
        if self._channels_last[slot]:  # index_select returns its result in the order of the given axes
            return state.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
        return state.index_select(0, rows)

    def write(self, slot: int, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        """Overwrite state `slot` of distinct rows [B] int64 (None: all) with values [B, *shape]."""
        if rows is None:
            self._tensors[slot].copy_(values)
        else:
            self._tensors[slot].index_copy_(0, rows, values)

    @torch.no_grad()
    def clear(self, row: int) -> None:
        """Set one row to zero."""
        for tensor in self._tensors:
            tensor[row].zero_()

    def snapshot_buffers(self, device: torch.device | str | None = None) -> tuple[torch.Tensor, ...]:
        """Allocate buffers for a copy of one row's state, on `device` (None: where the state is)."""
        return tuple(torch.empty_like(tensor[0], device=device or self.device) for tensor in self._tensors)

    @torch.no_grad()
    def copy_row(self, row: int, into: Sequence[torch.Tensor]) -> None:
        """Copy one row's state into its `snapshot_buffers`."""
        for target, tensor in zip(into, self._tensors, strict=True):
            target.copy_(tensor[row])

    @torch.no_grad()
    def load_row(self, row: int, features: Sequence[torch.Tensor]) -> None:
        """Load a copy made by `copy_row` into any row."""
        assert len(features) == len(self._tensors), (len(features), len(self._tensors))
        for tensor, feature in zip(self._tensors, features, strict=True):
            tensor[row].copy_(feature)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """One call of a network. rows: of the memory; None: all. first: whether their streams begin with it."""

    memory: FeatureMemory
    rows: torch.Tensor | None
    first: bool
