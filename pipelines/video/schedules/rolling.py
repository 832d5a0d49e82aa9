"""Owns the rolling schedule: a joint window of chunks that attend to each other, from the cleanest to the noisiest.

Rolling Forcing (2509.25161): one pass over the whole window, then a clean pass over its finished first chunk, which
writes that chunk's keys and values. Without the clean pass nothing of the past is kept: StreamDiT's moving buffer
(2507.03745). RAIN's groups (2412.19489) of K / p frames that share a noise level and attend across levels are chunks of
that size in p steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.conditioning.frames import FrameConditions
from pipelines.video.chunks import ChunkSlot
from pipelines.video.passes import PassRequest
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset

from .base import ChunkSchedule, PassPart, PendingPass


class RollingSchedule(ChunkSchedule):
    """The window moves when a chunk is admitted, or while it is drained. It grows at a stream's beginning."""

    _entered = False  # a chunk was admitted and the window has not moved since
    _begun = False

    @staticmethod
    def max_slots(preset: VideoPreset) -> int:
        return len(preset.steps)

    @property
    def fixed_steps(self) -> bool:
        return True

    @property
    def recaches(self) -> bool:
        return self._preset.clean_pass

    def latency_ticks(self, steps: int) -> int:
        """For chunks that are admitted as soon as there is room."""
        return steps * (1 + self._preset.clean_pass) - 1

    def ready(self, steps: int) -> bool:
        room = len(self.slots) < len(self._preset.steps) and steps <= len(self._preset.steps)
        return room and not self._pending and not self._entered and all(slot.remaining < steps for slot in self.slots)

    def has_work(self, *, draining: bool) -> bool:
        return bool(self._pending) or self._entered or (draining and bool(self.slots))

    def admit(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        self._queue_context(context)
        if not slot.steps:
            self._pending.append(PendingPass(kind="clean", latents=slot.latents, slot=slot, begins=True))
            return
        self.slots.append(slot)
        self._entered = True

    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        stream_rows = self._stream_rows
        if self._pending:
            return [self._pending_request(self._pending[0], stream_rows.text_rows[0], scale)]
        if not self.has_work(draining=draining):
            return []
        latents = torch.cat([slot.latents for slot in self.slots], dim=1)
        if not self._begun:
            stream_rows.begin(0, latents.shape[1], keep=self._kept_frames())
            self._begun = True
        timesteps = [slot.timestep for slot in self.slots for _ in range(slot.latents.shape[1])]
        conditions = FrameConditions.joined([slot.conditions.frames for slot in self.slots])
        request = stream_rows.request(
            0, latents, timesteps, stream_rows.text_rows[0], conditions=conditions, scale=scale
        )
        row = stream_rows.kv_rows[0][0]
        parts = tuple(
            PassPart(kind="denoise", slot=slot, row=row, step=slot.step, timestep=slot.timestep) for slot in self.slots
        )
        return [(request, parts)]

    def _kept_frames(self) -> int:
        """How many of the window's frames stay in the cache for the next window: the chunk that this pass finishes."""
        first = self.slots[0]
        return first.latents.shape[1] if self._preset.clean_pass and first.remaining == 1 else 0

    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        if self._pending:
            return self._land_pending(self._pending.popleft())
        self._entered = self._begun = False
        parts = torch.split(velocities[0], [slot.latents.shape[1] for slot in self.slots], dim=1)
        for slot, velocity in zip(self.slots, parts, strict=True):
            slot.advance(velocity)
        if self.slots[0].remaining:
            return []
        slot = self.slots.pop(0)
        if self._preset.clean_pass:
            frames = slot.latents.shape[1]
            self._pending.append(PendingPass(kind="clean", latents=slot.latents, slot=slot, view_frames=frames))
            self._past.finished(CleanFrames(slot.latents, slot.conditions.frames))
        return [slot]

    def _land_pending(self, pending: PendingPass) -> list[ChunkSlot]:
        if pending.slot is None or not pending.begins:
            return []
        self._past.finished(CleanFrames(pending.latents, pending.conditions))
        return [pending.slot]

    def drop(self) -> None:
        super().drop()
        self._entered = self._begun = False
