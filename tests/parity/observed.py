"""Runs the engine and records each slot's result after every tick. Depends on the ring's fields and the tick log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pipelines.core.types import Frame
from pipelines.image import denoise
from pipelines.image.engine import ImageEngine
from pipelines.image.stream import ImageStream


@dataclass(kw_only=True)
class SlotTrace:
    """Of one slot, by step: guided noise, latents afterwards, stock noise afterwards; each [F, C, h, w]."""

    timesteps: list[int] = field(default_factory=list)
    eps: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    stock: list[torch.Tensor] = field(default_factory=list)


class Observer:
    """traces: by (stream, slot)."""

    def __init__(self, engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.traces: defaultdict[tuple[int, int], SlotTrace] = defaultdict(SlotTrace)
        self._eps: torch.Tensor | None = None
        original = denoise.guided_noise

        def spy(*args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            eps, stock = original(*args)
            self._eps = eps.clone()
            return eps, stock

        monkeypatch.setattr(denoise, "guided_noise", spy)

    def tick(self) -> None:
        """One tick of the engine."""
        before = self.engine.core.next_tick
        self.engine.tick()
        if self.engine.core.next_tick == before:
            return
        record = self.engine.log.ticks()[-1]
        assert self._eps is not None
        for column, row in enumerate(record.rows):
            trace = self.traces[row.stream, row.slot]
            trace.timesteps.append(row.timestep)
            trace.eps.append(self._eps[column].clone())
            trace.latents.append(self.engine.core.ring.tensor("latents")[row.row].clone())
            trace.stock.append(self.engine.core.ring.tensor("stock")[row.row].clone())

    def feed(self, stream: ImageStream, pictures: Sequence[Frame]) -> list[Frame]:
        """Push all pictures, one per tick if accepted, and tick until all are finished."""
        out: list[Frame] = []
        for picture in pictures:
            while not stream.push(picture):
                self.tick()
                out += stream.pull()
            if not stream.accounting.in_flight % self.engine.core.frames_per_slot:
                self.tick()
                out += stream.pull()
        while stream.active:
            self.tick()
        return out + stream.flush()
