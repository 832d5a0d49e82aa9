"""Owns the clean latents of the frames that a cache still holds, so that they can be passed again with another prompt.

With each goes what conditioners said of it at its birth. Works on tensors and the frame indices of a cache's ledger.
All memory is allocated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from pipelines.conditioning.frames import Columns, FrameConditions


class CleanFrames(NamedTuple):
    """Finished latent frames. latents: [C, n, h, w]. conditions: of each frame."""

    latents: torch.Tensor
    conditions: FrameConditions


class StoredFrame(NamedTuple):
    """Where a frame stands in the store, and its columns by conditioner."""

    slot: int
    columns: Mapping[str, Columns]


class CleanLatents:
    """Up to `frames` latent frames [C, h, w] by the index that the cache knows them by. nothing: see `PastParts`."""

    def __init__(
        self,
        frames: int,
        shape: tuple[int, int, int],
        nothing: FrameConditions,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._store = torch.zeros((frames, *shape), device=device, dtype=dtype)
        self._fields = {name: field.repeat(frames, *(1,) * (field.dim() - 1)) for name, field in nothing.fields.items()}
        self._cells: dict[int, StoredFrame] = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of what is held, in order of time."""
        return tuple(sorted(self._cells))

    def put(self, frames: Sequence[int], clean: CleanFrames, *, standing: Iterable[int] = ()) -> None:
        """Add these frames. What does not stand any more makes room; if that is not enough, the oldest go."""
        still = set(standing) | set(frames)
        self._cells = {frame: cell for frame, cell in self._cells.items() if frame in still}
        for frame in frames:
            self._cells.pop(frame, None)
        while len(self._cells) + len(frames) > len(self._store):
            del self._cells[min(self._cells)]
        taken = {cell.slot for cell in self._cells.values()}
        free = (index for index in range(len(self._store)) if index not in taken)
        for number, frame in enumerate(frames):
            index = next(free)
            self._store[index].copy_(clean.latents[:, number])
            for name, field in self._fields.items():
                field[index].copy_(clean.conditions.fields[name][number])
            columns = {name: values[number] for name, values in clean.conditions.columns.items()}
            self._cells[frame] = StoredFrame(index, columns)

    def take(self, frames: Sequence[int]) -> CleanFrames:
        """These frames, a copy."""
        cells = [self._cells[frame] for frame in frames]
        latents = torch.stack([self._store[cell.slot] for cell in cells], dim=1)
        slots = [cell.slot for cell in cells]
        fields = {name: torch.stack([field[slot] for slot in slots]) for name, field in self._fields.items()}
        columns = {name: tuple(cell.columns[name] for cell in cells) for name in cells[0].columns}
        return CleanFrames(latents, FrameConditions(columns=columns, fields=fields))

    def rename(self, frames: Sequence[int]) -> None:
        """Keep these frames only; they are 0, 1, ... from now on."""
        self._cells = {new: self._cells[old] for new, old in enumerate(frames)}

    def clear(self) -> None:
        """Forget everything."""
        self._cells = {}

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is held, [frames, ...] each; always the same memory."""
        return self._store, *self._fields.values()

    @property
    def cells(self) -> dict[int, StoredFrame]:
        """A copy of which frame stands where in the store."""
        return dict(self._cells)

    def restore(self, cells: dict[int, StoredFrame]) -> None:
        """The store has been put back to when this was what stood in it."""
        self._cells = dict(cells)
