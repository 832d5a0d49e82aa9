"""Owns the clean latents of the frames that a cache still holds, so that they can be passed again with another prompt.

Each is stored with its original conditions. Works on tensors and the frame indices of a cache's ledger. All memory is
allocated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from pipelines.conditioning.frames import Columns, FrameConditions
from pipelines.video.recache import RecachePass


class CleanFrames(NamedTuple):
    """Finished latent frames. latents: [C, n, h, w]. conditions: of each frame. recache: when they are passed again:
    what they keep; None: nothing.
    """

    latents: torch.Tensor
    conditions: FrameConditions
    recache: RecachePass | None = None


class StoredFrame(NamedTuple):
    """A frame's slot in the store, and its columns by conditioner."""

    slot: int
    columns: Mapping[str, Columns]


class CleanLatents:
    """Stores up to `frames` latent frames [C, h, w] by their index in the cache's ledger. nothing: see `PastParts`."""

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
        """Indices of the stored frames, in order of time."""
        return tuple(sorted(self._cells))

    def put(self, frames: Sequence[int], clean: CleanFrames, *, cached: Iterable[int] = ()) -> None:
        """Add these frames. Frames that are no longer `cached` are dropped, then the oldest, if there is no room."""
        keep = set(cached) | set(frames)
        self._cells = {frame: cell for frame, cell in self._cells.items() if frame in keep}
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
        """Return a copy of these frames."""
        cells = [self._cells[frame] for frame in frames]
        latents = torch.stack([self._store[cell.slot] for cell in cells], dim=1)
        slots = [cell.slot for cell in cells]
        fields = {name: torch.stack([field[slot] for slot in slots]) for name, field in self._fields.items()}
        columns = {name: tuple(cell.columns[name] for cell in cells) for name in cells[0].columns}
        return CleanFrames(latents, FrameConditions(columns=columns, fields=fields))

    def rename(self, frames: Sequence[int]) -> None:
        """Keep only these frames, renumbered 0, 1, ... in this order."""
        self._cells = {new: self._cells[old] for new, old in enumerate(frames)}

    def clear(self) -> None:
        """Drop all frames."""
        self._cells = {}

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The store of latents and of each field, [frames, ...] each; always the same memory."""
        return self._store, *self._fields.values()

    @property
    def cells(self) -> dict[int, StoredFrame]:
        """A copy of the index: which frame is in which slot of the store."""
        return dict(self._cells)

    def restore(self, cells: dict[int, StoredFrame]) -> None:
        """Restore the index; the caller has restored the contents of `tensors`."""
        self._cells = dict(cells)
