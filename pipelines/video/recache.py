"""Owns which layers are computed again when frames of the past are passed again with a new prompt.

After Elastic-Cache (2510.14973, of which only the abstract is used): shallow layers change least, so their keys and
values are kept, and the others begin with the hidden states that were stored when the frames were made. From where on,
a schedule or the measured drift of attention decides; see cache.kv.recall. Never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cache.kv.recall import Kept, Refresh
from pipelines.core.transfers import Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Recaching:
    """boundaries: layers from which a pass may begin, ascending. drift: the largest drift of attention of a layer that
    is kept; 0: a schedule, every pass begins at the first boundary.
    """

    boundaries: tuple[int, ...]
    drift: float = 0.0


def chosen_recaching(layers: int, first_layer: int, drift: float) -> Recaching | None:
    """The choice of an engine's options, for a network of so many layers; None: all layers, as made without options."""
    if drift:
        quarters = sorted({layers * part // 4 for part in (1, 2, 3)} - {0})
        return Recaching(boundaries=tuple(quarters), drift=drift)
    return Recaching(boundaries=(first_layer,)) if first_layer else None


def first_layer(boundaries: Sequence[int], drifts: Sequence[float], limit: float) -> int:
    """The deepest boundary below which no layer has drifted further than `limit`; 0 if there is none."""
    return max((b for b in boundaries if all(drift <= limit for drift in drifts[:b])), default=0)


class DriftReading:
    """The drift of each layer below the last boundary, measured by one pass of a cut and read by the later ones."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self.device_drift = torch.zeros(layers, dtype=torch.float32, device=device)
        self._host = torch.zeros(layers, dtype=torch.float32, pin_memory=device.type == "cuda")
        self._mark, self._started = Mark(device), False

    def reset(self) -> None:
        """Another cut begins."""
        self._started = False

    def start(self) -> None:
        """The pass has been issued: copy to the host behind it."""
        self._host.copy_(self.device_drift, non_blocking=True)
        self._mark.record()
        self._started = True

    @property
    def values(self) -> list[float] | None:
        """None until they have arrived."""
        return self._host.tolist() if self._started and self._mark.passed() else None


class RecachePass:
    """One of the passes that follow a cut; `refresh` is called when its tick has come."""

    def __init__(self, recaching: Recaching, kept: Kept, reading: DriftReading | None, *, measures: bool) -> None:
        """reading: shared by the passes of a cut; None for a schedule. measures: this is the first of them."""
        self._recaching, self._kept, self._reading, self._measures = recaching, kept, reading, measures

    @property
    def reading(self) -> DriftReading | None:
        """To be started behind this pass."""
        return self._reading if self._measures else None

    @property
    def refresh(self) -> Refresh:
        """What the pass keeps."""
        if self._reading is None:
            return Refresh(kept=self._kept, first_layer=self._recaching.boundaries[0])
        if self._measures:
            return Refresh(kept=self._kept, first_layer=0, drift=self._reading.device_drift)
        values = self._reading.values
        layer = 0 if values is None else first_layer(self._recaching.boundaries, values, self._recaching.drift)
        return Refresh(kept=self._kept, first_layer=layer)


def make_reading(recaching: Recaching | None, device: torch.device) -> DriftReading | None:
    """Memory for the drift of a stream's cuts; None if nothing is measured."""
    if recaching is None or not recaching.drift:
        return None
    return DriftReading(recaching.boundaries[-1], device)


def recache_passes(recaching: Recaching, kept: Sequence[Kept], reading: DriftReading | None) -> list[RecachePass]:
    """The passes of one cut, in order."""
    if reading is not None:
        reading.reset()
    return [RecachePass(recaching, part, reading, measures=not number) for number, part in enumerate(kept)]
