"""Owns the passes of a batch of which some entries are windows: each group through its network, results put together.

Reads static buffers and never waits for the device, so it can be captured in a CUDA graph. Independent of streams and
decisions: pipelines/image/reuse/layout.py divides a batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cache.features.lines import FeatureLines, WindowPlaces
from pipelines.conditioning.base import LATENT_BIAS
from pipelines.image.model import Condition, Denoiser, WindowNetworks

from .layout import PassLayout, ReuseRow


class ReusingDenoiser:
    """A `Denoiser` for batches of one layout."""

    def __init__(
        self,
        layout: PassLayout,
        table: torch.Tensor,
        denoiser: Denoiser,
        networks: WindowNetworks,
        lines: FeatureLines,
    ) -> None:
        """table: [len(ReuseRow), columns] int64, filled for this layout."""
        self._layout, self._table = layout, table
        self._denoiser, self._networks, self._lines = denoiser, networks, lines

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`."""
        layout, result = self._layout, torch.empty_like(latents)
        start = layout.full
        if layout.full:
            chosen = self._table[ReuseRow.COLUMN, :start]
            x0 = self._denoiser(latents[chosen], timestep[chosen], condition.of_rows(chosen))
            result.index_copy_(0, chosen, x0)
        if layout.store:
            chosen, lines = self._table[:2, start : start + layout.store]
            x0, features = self._networks.whole(latents[chosen], timestep[chosen], condition.of_rows(chosen))
            self._lines.write(lines, features, x0)
            result.index_copy_(0, chosen, x0)
            start += layout.store
        for sizes in layout.rounds:
            first = start
            for (rows, columns), count in sizes:
                cell = self._networks.cell
                self._windows((rows * cell, columns * cell), start, count, latents, timestep, condition)
                start += count
            chosen, lines = self._table[:2, first:start]
            result.index_copy_(0, chosen, self._lines.result(lines))
        return result

    def _windows(
        self,
        size: tuple[int, int],
        start: int,
        count: int,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: Condition,
    ) -> None:
        """Compute windows of one size, in latents, and keep what they computed."""
        chosen, line, row, column = self._table[:, start : start + count]
        places = WindowPlaces(line=line, row=row, column=column, size=size)
        own = condition.of_rows(chosen)
        bias = own.inputs.get(LATENT_BIAS)
        if bias is not None:
            cut = _cut(bias, torch.arange(count, device=bias.device), places)
            own = replace(own, inputs={**own.inputs, LATENT_BIAS: cut})
        x0, features = self._networks.windows(
            _cut(latents, chosen, places),
            timestep[chosen],
            own,
            self._lines.around(places),
            self._lines.token_index(places),
        )
        self._lines.update(places, features, x0)


def _cut(pictures: torch.Tensor, chosen: torch.Tensor, places: WindowPlaces) -> torch.Tensor:
    """Return the windows [N, C, h, w] of the chosen pictures [N] of [entries, C, H, W]."""
    height, width = pictures.shape[2:]
    index = places.index(0, width) + (chosen * height * width)[:, None, None]
    return pictures.permute(0, 2, 3, 1).flatten(0, 2)[index].permute(0, 3, 1, 2)
