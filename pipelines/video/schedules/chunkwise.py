"""Owns the chunk-autoregressive schedule: one chunk at a time, step after step, then a clean pass.

Self-Forcing (2506.08009, algorithm 2), CausVid, LongLive; Krea without the clean pass, as it rebuilds its cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset

from .base import ChunkSchedule, PassPart, PendingPass


class ChunkwiseSchedule(ChunkSchedule):
    """Context passes, denoising passes, the clean pass: one per tick. Frames come out before the clean pass."""

    @staticmethod
    def max_slots(preset: VideoPreset) -> int:
        return 1

    def latency_ticks(self, steps: int) -> int:
        return steps - 1 + self._preset.clean_pass  # the clean pass of the chunk before

    @property
    def can_rewind(self) -> bool:
        return True

    def ready(self, steps: int) -> bool:
        return not self._pending

    def has_work(self, *, draining: bool) -> bool:
        return bool(self._pending)

    def admit(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        self._queue_context(context)
        self.slots.append(slot)
        for step in range(len(slot.steps)):
            self._pending.append(PendingPass(kind="denoise", latents=slot.latents, slot=slot, begins=step == 0))
        if self._preset.clean_pass or not slot.steps:
            self._pending.append(PendingPass(kind="clean", latents=slot.latents, slot=slot, begins=not slot.steps))

    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        if not self._pending:
            return []
        pending, stream_rows = self._pending[0], self._stream_rows
        if pending.kind != "denoise":
            return [self._pending_request(pending, stream_rows.text_rows[0], scale)]
        slot = pending.slot
        assert slot is not None
        frames = slot.latents.shape[1]
        if pending.begins and not pending.begun:
            stream_rows.begin(0, frames)
            pending.begun = True
        timesteps = (slot.timestep,) * frames
        request = stream_rows.request(
            0, slot.latents, timesteps, stream_rows.text_rows[0], conditions=pending.conditions, scale=scale
        )
        row = stream_rows.kv_rows[0][0]
        return [(request, (PassPart(kind="denoise", slot=slot, row=row, step=slot.step, timestep=slot.timestep),))]

    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        pending = self._pending.popleft()
        slot = pending.slot
        if slot is None:
            return []
        if pending.kind == "denoise":
            slot.advance(velocities[0])
        if slot not in self.slots or slot.remaining:
            return []
        self.slots.remove(slot)
        self._past.finished(CleanFrames(slot.latents, slot.conditions.frames))
        return [slot]
