"""Owns the rotation of every slot: cosines and sines of its span's current position, in tensors at fixed addresses.

Only the temporal part changes: it is uploaded, a few numbers per span. Rows and columns are constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from cache.kv.plan import Region, Span
from cache.rotary import Rotary


def upload(host: torch.Tensor, target: torch.Tensor) -> None:
    """Copy a host tensor into a device tensor without synchronising with the device."""
    if target.is_cuda:
        host = host.pin_memory()
    target.copy_(host, non_blocking=True)


class PhaseTables:
    """cos, sin: [rows, capacity, 1, D/2] by slot. phase_step: radians per shot index of a span."""

    def __init__(
        self,
        rotary: Rotary,
        regions: Sequence[Region],
        rows: int,
        *,
        phase_step: float,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._rotary, self._regions, self._phase_step, self._dtype = rotary, tuple(regions), phase_step, dtype
        self.time_pairs = rotary.pairs[0]
        offsets = [sorted(set(region.t)) for region in regions]
        self._offsets = offsets
        self._first_unit, units = [], 0
        unit_of_slot: list[int] = []
        for region, distinct in zip(regions, offsets, strict=True):
            self._first_unit.append(units)
            for cell in range(region.cells):
                unit_of_slot += [units + cell * len(distinct) + distinct.index(t) for t in region.t]
            units += region.cells * len(distinct)
        self._units = units
        self._unit_of_slot = torch.tensor(unit_of_slot, dtype=torch.int64, device=device)
        self._times = torch.zeros((2, units, self.time_pairs), dtype=dtype, device=device)
        y = torch.tensor([y for region in regions for y in region.y * region.cells], dtype=torch.float64)
        x = torch.tensor([x for region in regions for x in region.x * region.cells], dtype=torch.float64)
        cos, sin = rotary.tables(torch.zeros_like(y), y, x, dtype=dtype)
        self.cos, self.sin = (table.expand(rows, *table.shape).contiguous().to(device) for table in (cos, sin))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory."""
        return self.cos, self.sin, self._times, self._unit_of_slot

    def update(self, row: int, spans: Iterable[Span]) -> None:
        """Set the rotations of these spans' slots to their positions."""
        positions, phases = [0.0] * self._units, [0.0] * self._units
        for span in spans:
            region = next(i for i, r in enumerate(self._regions) if r.start <= span.start < r.stop)
            offsets = self._offsets[region]
            first = self._first_unit[region] + self._regions[region].cell(span.start) * len(offsets)
            for i, offset in enumerate(offsets):
                positions[first + i] = span.position + offset
                phases[first + i] = span.phase * self._phase_step
        upload(self.times(positions, phases), self._times)
        for table, time in zip((self.cos, self.sin), self._times, strict=True):
            table[row, :, 0, : self.time_pairs] = time.index_select(0, self._unit_of_slot)

    def times(self, positions: Sequence[float], phases: Sequence[float]) -> torch.Tensor:
        """Temporal (cos, sin) at positions in latent frames and phases in radians: [2, n, time pairs] on the host."""
        angles = self._rotary.axis_angles(
            0, torch.tensor(positions, dtype=torch.float64), torch.tensor(phases, dtype=torch.float64)
        )
        return torch.stack((angles.cos(), angles.sin())).to(self._dtype)

    def spatial(self, region: Region) -> tuple[torch.Tensor, torch.Tensor]:
        """Spatial (cos, sin) of a region's cell, by slot within the cell: each [tokens, pairs of rows and columns]."""
        cell = slice(region.start, region.start + region.tokens)
        return self.cos[0, cell, 0, self.time_pairs :], self.sin[0, cell, 0, self.time_pairs :]
