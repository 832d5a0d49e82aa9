"""Owns the rows that a recording keeps: calls of a part, taken apart into batch rows and put together again.

Independent of models and engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from pipelines.core.parts import Tensors


class Recorder:
    """Keeps the rows of calls, of which `samples` makes batches. axes: the axis of the rows of some inputs, by number;
    0 for all others.
    """

    def __init__(self, axes: Mapping[int, int] = MappingProxyType({})) -> None:
        self._axes = axes
        self._rows: list[Tensors] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, *inputs: torch.Tensor) -> None:
        """Copy each batch row of a call's inputs."""
        parts = [torch.split(tensor.detach().clone(), 1, self._axes.get(i, 0)) for i, tensor in enumerate(inputs)]
        self._rows += list(zip(*parts, strict=True))

    def samples(self, count: int, batch: int, seed: int) -> list[Tensors]:
        """Return `count` calls with `batch` different rows each, drawn from all rows. Needs count * batch rows."""
        assert len(self._rows) >= count * batch, (len(self._rows), count, batch)
        order = torch.randperm(len(self._rows), generator=torch.Generator().manual_seed(seed)).tolist()
        return [self._joined(order[i * batch : (i + 1) * batch]) for i in range(count)]

    def _joined(self, rows: list[int]) -> Tensors:
        columns = zip(*(self._rows[row] for row in rows), strict=True)
        return tuple(torch.cat(column, self._axes.get(i, 0)) for i, column in enumerate(columns))
