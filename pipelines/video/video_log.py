"""Owns how a video stream's chunks and passes become records of the tick log. Independent of batching."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.core.tick_log import BirthRecord, RowRecord

from .chunks import ChunkSlot
from .passes import PassRequest
from .schedules import PassPart
from .state import VideoCore


def birth_record(core: VideoCore, slot: ChunkSlot, row: int) -> BirthRecord:
    """Return the record of a new chunk whose first cache row is `row`."""
    birth, controls = slot.birth, slot.birth.controls
    content = birth.content
    return BirthRecord(
        tick=core.next_tick,
        stream=birth.stream,
        slot=birth.number,
        row=row,
        source_seqs=tuple(None if f is None else f.seq for f in content.frames[: content.kept]),
        timesteps=tuple(step.timestep for step in slot.steps),
        strength=birth.strength,
        step_function=core.preset.sampler,
        guidance_mode="full" if core.branches == 2 else "none",
        seed=controls.seed,
        seed_lock=controls.seed_lock,
    )


def row_records(
    stream: int, found: Sequence[tuple[PassRequest, tuple[PassPart, ...]]], *, guided: bool
) -> list[RowRecord]:
    """Return the records of one stream's passes in one tick. slot -1: a pass over earlier frames."""
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
