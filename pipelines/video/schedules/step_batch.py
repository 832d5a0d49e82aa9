"""Owns the step-batched schedule: one chunk at each denoising step, all in one batch.

StreamDiffusionV2 (2511.07399, section 4.2): each step has its own cache row, whose past has that step's noise level;
there is no clean pass. A chunk advances by one row per tick.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset

from .base import ChunkSchedule, PassPart


class StepBatchSchedule(ChunkSchedule):
    """One pass of every chunk in flight per tick. Chunks advance whether or not others follow them."""

    _begun = False

    @staticmethod
    def max_slots(preset: VideoPreset) -> int:
        return len(preset.steps)

    @staticmethod
    def max_rows(preset: VideoPreset) -> int:
        return len(preset.steps)

    @staticmethod
    def text_rows(preset: VideoPreset) -> int:
        return len(preset.steps)

    @property
    def texts(self) -> list[tuple[int, ChunkSlot]]:
        return [(self._stream_rows.text_rows[slot.step], slot) for slot in self.slots]

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
        free = len(self.slots) < len(self._stream_rows.kv_rows)
        return free and steps <= len(self._stream_rows.kv_rows) and all(slot.remaining < steps for slot in self.slots)

    def has_work(self, *, draining: bool) -> bool:
        return bool(self.slots)

    def admit(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        assert not context, "a step-batched cache holds noisy frames: no clean frames are passed again"
        self.slots.append(slot)

    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        found: list[tuple[PassRequest, tuple[PassPart, ...]]] = []
        for slot in self.slots:
            frames, row = slot.latents.shape[1], slot.step
            if not self._begun:
                self._stream_rows.begin(row, frames)
            text_row, timesteps = self._stream_rows.text_rows[row], (slot.timestep,) * frames
            request = self._stream_rows.request(
                row, slot.latents, timesteps, text_row, conditions=slot.conditions.frames, scale=scale
            )
            part = PassPart(
                kind="denoise", slot=slot, row=self._stream_rows.kv_rows[row][0], step=slot.step, timestep=slot.timestep
            )
            found.append((request, (part,)))
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
