"""Owns how a video stream's chunks and passes become records of the tick log. Knows no batch."""

from __future__ import annotations

from collections.abc import Sequence

from ..stream_log import StreamLog
from ..ticklog import BirthRecord, RowRecord
from .chunks import ChunkSlot
from .core import VideoCore
from .passes import PassRequest
from .streams import Task


class VideoLog(StreamLog):
    """The records of one stream."""

    def __init__(self, core: VideoCore, number: int) -> None:
        super().__init__(core, number)
        self._shared = core

    def birth_of(self, slot: ChunkSlot, row: int) -> None:
        """A new chunk."""
        birth, controls = slot.birth, slot.birth.controls
        content = birth.content
        self._shared.log.add(
            BirthRecord(
                tick=self._shared.next_tick,
                stream=birth.stream,
                slot=birth.number,
                row=row,
                source_seqs=tuple(None if f is None else f.seq for f in content.frames[: content.kept]),
                timesteps=tuple(step.timestep for step in slot.steps),
                strength=birth.strength,
                step_function=self._shared.preset.sampler,
                guidance_mode="full" if self._shared.branches == 2 else "none",
                seed=controls.integer("seed"),
                seed_lock=controls.flag("seed_lock"),
            )
        )


def row_records(stream: int, found: Sequence[tuple[PassRequest, tuple[Task, ...]]], *, guided: bool) -> list[RowRecord]:
    """What one tick did for one stream. slot -1: a pass over earlier frames."""
    return [
        RowRecord(
            stream=stream,
            slot=-1 if task.slot is None else task.slot.birth.number,
            row=task.row,
            step=task.step,
            timestep=task.timestep,
            extra=guided,
            guidance_scale=request.scale,
            guidance_delta=1.0,
            task=task.kind,
        )
        for request, tasks in found
        for task in tasks
    ]
