"""Owns the chunk-autoregressive stream: one chunk at a time, its steps one after another, then a pass over it clean.

Self-Forcing (2506.08009, algorithm 2), CausVid, LongLive; Krea's without the clean pass, as its cache is rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset

from .base import Flight, Job, Task


class ChunkFlight(Flight):
    """Context passes, denoising passes, the clean pass: one a tick. The frames come out before the clean pass."""

    @staticmethod
    def most_slots(preset: VideoPreset) -> int:
        return 1

    def latency_ticks(self, steps: int) -> int:
        return steps - 1 + self._preset.clean_pass  # the clean pass of the chunk before

    @property
    def can_rewind(self) -> bool:
        return True

    def ready(self, steps: int) -> bool:
        return not self._jobs

    def has_work(self, *, draining: bool) -> bool:
        return bool(self._jobs)

    def bear(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        self._queue_context(context)
        self.slots.append(slot)
        for step in range(len(slot.steps)):
            self._jobs.append(
                Job(kind="denoise", latents=slot.latents, actions=slot.actions, slot=slot, begins=step == 0)
            )
        if self._preset.clean_pass or not slot.steps:
            self._jobs.append(
                Job(kind="clean", latents=slot.latents, actions=slot.actions, slot=slot, begins=not slot.steps)
            )

    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[Task, ...]]]:
        if not self._jobs:
            return []
        job, lane = self._jobs[0], self._lane
        if job.kind != "denoise":
            return [self._job_request(job, lane.text_rows[0], scale)]
        slot = job.slot
        assert slot is not None
        frames = slot.latents.shape[1]
        if job.begins and not job.begun:
            lane.begin(0, frames)
            job.begun = True
        timesteps = (slot.timestep,) * frames
        request = lane.request(0, slot.latents, timesteps, lane.text_rows[0], actions=job.actions, scale=scale)
        row = lane.kv_rows[0][0]
        return [(request, (Task(kind="denoise", slot=slot, row=row, step=slot.step, timestep=slot.timestep),))]

    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        job = self._jobs.popleft()
        slot = job.slot
        if slot is None:
            return []
        if job.kind == "denoise":
            slot.advance(velocities[0])
        if slot not in self.slots or slot.remaining:
            return []
        self.slots.remove(slot)
        self._memory.finished(CleanFrames(slot.latents, slot.actions))
        return [slot]
