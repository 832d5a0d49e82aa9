"""How a stream's chunks go through the denoiser, in one table: one at a time, step-batched, or in a joint window."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import ChunkSchedule, PassPart
from .chunkwise import ChunkwiseSchedule
from .rolling import RollingSchedule
from .step_batch import StepBatchSchedule

CHUNK_SCHEDULES: Mapping[str, type[ChunkSchedule]] = MappingProxyType(
    {"chunk": ChunkwiseSchedule, "step-batch": StepBatchSchedule, "rolling": RollingSchedule}
)
"""By the names of VideoPreset.stream."""

__all__ = ["CHUNK_SCHEDULES", "ChunkSchedule", "PassPart"]
