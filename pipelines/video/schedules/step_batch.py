"""Owns the step-batched stream: a chunk at each denoising step, all of them one batch.

StreamDiffusionV2 (2511.07399, section 4.2): each step has a cache row of its own, whose past has that step's noise
level; there is no clean pass. A chunk moves on by one row a tick.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset

from .base import Flight, Task


class StepBatchFlight(Flight):
    """One pass of every chunk in flight a tick. Chunks move on whether or not another one follows them."""

    _begun = False

    @staticmethod
    def most_slots(preset: VideoPreset) -> int:
        return len(preset.steps)

    @staticmethod
    def most_rows(preset: VideoPreset) -> int:
        return len(preset.steps)

    @staticmethod
    def text_rows(preset: VideoPreset) -> int:
        return len(preset.steps)

    @property
    def texts(self) -> list[tuple[int, ChunkSlot]]:
        return [(self._lane.text_rows[slot.step], slot) for slot in self.slots]

    def latency_ticks(self, steps: int) -> int:
        return steps - 1

    @property
    def fixed_steps(self) -> bool:
        return True

    @property
    def recaches(self) -> bool:
        return False

    @property
    def takes_pictures(self) -> bool:
        return False

    def ready(self, steps: int) -> bool:
        free = len(self.slots) < len(self._lane.kv_rows)
        return free and steps <= len(self._lane.kv_rows) and all(slot.remaining < steps for slot in self.slots)

    def has_work(self, *, draining: bool) -> bool:
        return bool(self.slots)

    def bear(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        assert not context, "a step-batched cache holds noisy frames: no clean one is passed again"
        self.slots.append(slot)

    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[Task, ...]]]:
        found: list[tuple[PassRequest, tuple[Task, ...]]] = []
        for slot in self.slots:
            frames, row = slot.latents.shape[1], slot.step
            if not self._begun:
                self._lane.begin(row, frames)
            text_row, timesteps = self._lane.text_rows[row], (slot.timestep,) * frames
            request = self._lane.request(row, slot.latents, timesteps, text_row, actions=slot.actions, scale=scale)
            task = Task(
                kind="denoise", slot=slot, row=self._lane.kv_rows[row][0], step=slot.step, timestep=slot.timestep
            )
            found.append((request, (task,)))
        self._begun = True
        return found

    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        self._begun = False
        for slot, velocity in zip(self.slots, velocities, strict=True):
            slot.advance(velocity)
        done = [slot for slot in self.slots if not slot.remaining]
        self.slots = [slot for slot in self.slots if slot.remaining]
        return done

    def drop(self) -> None:
        super().drop()
        self._begun = False
