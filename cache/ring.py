"""Owns the preallocated storage of the slots in flight: one row per slot, handed out by a moving head.

Works on tensors and integers only, never on frames, prompts or streams. Nothing here concatenates, rolls or grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RingField:
    """One named tensor of a row."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class Ring:
    """`capacity` rows; for each field one tensor [capacity, *shape] of zeros, allocated once, here."""

    def __init__(self, capacity: int, fields: Mapping[str, RingField], device: torch.device) -> None:
        assert capacity >= 1, capacity
        self.capacity = capacity
        self._tensors = {
            name: torch.zeros((capacity, *spec.shape), dtype=spec.dtype, device=device) for name, spec in fields.items()
        }
        self._cells = {name: t.flatten(0, 1) for name, t in self._tensors.items() if t.dim() > 1}
        self._held = [False] * capacity
        self._free_rows = capacity
        self._head = 0

    @property
    def free_rows(self) -> int:
        """How many rows `acquire` can still hand out."""
        return self._free_rows

    @property
    def held_rows(self) -> tuple[int, ...]:
        """The rows handed out and not yet released, ascending."""
        return tuple(row for row, held in enumerate(self._held) if held)

    def acquire(self) -> int | None:
        """The next free row at or after the head, which moves past it; None when every row is held."""
        for offset in range(self.capacity):
            row = (self._head + offset) % self.capacity
            if not self._held[row]:
                self._held[row] = True
                self._free_rows -= 1
                self._head = (row + 1) % self.capacity
                return row
        return None

    def release(self, row: int) -> None:
        """Free a held row. Its contents stay until they are overwritten."""
        assert self._held[row], f"row {row} is not held"
        self._held[row] = False
        self._free_rows += 1

    def tensor(self, field: str) -> torch.Tensor:
        """The storage of a field: [capacity, *shape]."""
        return self._tensors[field]

    def cells(self, field: str) -> torch.Tensor:
        """A view of a field with its first inner axis merged into the rows: [capacity * shape[0], *shape[1:]].

        Cell row * shape[0] + i is entry i of the row.
        """
        return self._cells[field]

    def gather(self, field: str, rows: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Copy rows [N] (int64, on the ring's device) to [N, *shape], into `out` if given."""
        source = self._tensors[field]
        if out is None:
            return source.index_select(0, rows)
        return torch.index_select(source, 0, rows, out=out)

    def scatter(self, field: str, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Write values [N, *shape] into distinct rows [N] int64."""
        self._tensors[field].index_copy_(0, rows, values)

    def check_integrity(self) -> None:
        """Assert that free and held rows add up to the capacity."""
        held = sum(self._held)
        assert self._free_rows + held == self.capacity, (self._free_rows, held, self.capacity)
        assert 0 <= self._head < self.capacity, self._head
