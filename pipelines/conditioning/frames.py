"""Owns the conditions that accompany latent frames, through passes and alongside stored clean latents.

Independent of which conditioners exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch

Columns = tuple[float, ...]
"""The values of one conditioner's columns for one frame."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameConditions:
    """columns: by conditioner, the values for each frame. fields: by name, [frames, *shape]."""

    columns: Mapping[str, tuple[Columns, ...]]
    fields: Mapping[str, torch.Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate along the frames; there must be at least one part."""
        first = parts[0]
        columns = {name: tuple(values for part in parts for values in part.columns[name]) for name in first.columns}
        fields = {name: torch.cat([part.fields[name] for part in parts]) for name in first.fields}
        return cls(columns=columns, fields=fields)

    def select(self, frames: Sequence[int]) -> FrameConditions:
        """Return a copy of the conditions of these frames only."""
        columns = {name: tuple(values[frame] for frame in frames) for name, values in self.columns.items()}
        return FrameConditions(columns=columns, fields={n: field[list(frames)] for n, field in self.fields.items()})

    def nothing(self, frames: int) -> FrameConditions:
        """Return zeros, meaning no condition, for that many frames."""
        columns = {name: ((0.0,) * len(values[0]),) * frames for name, values in self.columns.items()}
        fields = {
            name: torch.zeros_like(field[:1]).expand(frames, *field.shape[1:]) for name, field in self.fields.items()
        }
        return FrameConditions(columns=columns, fields=fields)
