"""Owns the clean latents of the frames that a cache still holds, so that they can be passed again with another prompt.

With each goes the action that it was born with. Knows tensors and the frame indices of a cache's ledger. All memory is
allocated once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from pipelines.video.wan.actions import Action


class CleanFrames(NamedTuple):
    """Finished latent frames. latents: [C, n, h, w]. actions: of each frame."""

    latents: torch.Tensor
    actions: tuple[Action, ...]


class StoredFrame(NamedTuple):
    """Where a frame stands in the store, and its action."""

    slot: int
    action: Action


class CleanLatents:
    """Up to `frames` latent frames [C, h, w] by the index that the cache knows them by."""

    def __init__(self, frames: int, shape: tuple[int, int, int], *, device: torch.device, dtype: torch.dtype) -> None:
        self._store = torch.zeros((frames, *shape), device=device, dtype=dtype)
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
        for number, (frame, action) in enumerate(zip(frames, clean.actions, strict=True)):
            index = next(free)
            self._store[index].copy_(clean.latents[:, number])
            self._cells[frame] = StoredFrame(index, action)

    def take(self, frames: Sequence[int]) -> CleanFrames:
        """These frames, a copy."""
        cells = [self._cells[frame] for frame in frames]
        latents = torch.stack([self._store[cell.slot] for cell in cells], dim=1)
        return CleanFrames(latents, tuple(cell.action for cell in cells))

    def rename(self, frames: Sequence[int]) -> None:
        """Keep these frames only; they are 0, 1, ... from now on."""
        self._cells = {new: self._cells[old] for new, old in enumerate(frames)}

    def clear(self) -> None:
        """Forget everything."""
        self._cells = {}

    @property
    def store(self) -> torch.Tensor:
        """All that is held, [frames, C, h, w]; always the same memory."""
        return self._store

    @property
    def cells(self) -> dict[int, StoredFrame]:
        """A copy of which frame stands where in the store."""
        return dict(self._cells)

    def restore(self, cells: dict[int, StoredFrame]) -> None:
        """The store has been put back to when this was what stood in it."""
        self._cells = dict(cells)
