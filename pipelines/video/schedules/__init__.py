"""How a stream's chunks go through the denoiser, in one table: one by one, a row for each step, a joint window."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import Flight, Task
from .chunkwise import ChunkFlight
from .rolling import RollingFlight
from .step_batch import StepBatchFlight

FLIGHTS: Mapping[str, type[Flight]] = MappingProxyType(
    {"chunk": ChunkFlight, "step-batch": StepBatchFlight, "rolling": RollingFlight}
)
"""By the names of VideoPreset.stream."""

__all__ = ["FLIGHTS", "Flight", "Task"]
