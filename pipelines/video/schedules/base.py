"""Owns the contract of a stream's flight: which passes its chunks need in a tick, and what their results do.

Knows rows, latents and steps; no prompt, no codec and no other stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.video.chunks import ChunkSlot
from pipelines.video.flow import CLEAN_TIMESTEP
from pipelines.video.lane import Lane
from pipelines.video.passes import PassRequest
from pipelines.video.past import Memory
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset
from pipelines.video.wan.actions import Action

TaskKind = Literal["denoise", "clean", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the tick log says of one chunk's part in a tick. row: of the cache."""

    kind: TaskKind
    slot: ChunkSlot | None
    row: int
    step: int
    timestep: float


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One pass that waits its turn. latents: [C, n, h, w], passed at timestep 0 for "clean" and "context". actions: of
    each frame.

    begins: the cache makes room for it first. begun: it has (a pass that failed is tried again without).
    """

    kind: TaskKind
    latents: torch.Tensor
    actions: tuple[Action, ...]
    slot: ChunkSlot | None = None
    begins: bool = False
    begun: bool = False
    view_frames: int | None = None


class Flight(ABC):
    """The chunks of one stream in flight, oldest first."""

    def __init__(self, preset: VideoPreset, lane: Lane, memory: Memory) -> None:
        self._preset, self._lane, self._memory = preset, lane, memory
        self.slots: list[ChunkSlot] = []
        self._jobs: deque[Job] = deque()

    @staticmethod
    @abstractmethod
    def most_slots(preset: VideoPreset) -> int:
        """Chunks in flight at most."""

    @staticmethod
    def most_rows(preset: VideoPreset) -> int:
        """Rows of the cache that a stream needs, without those for negative prompts."""
        return 1

    @staticmethod
    def text_rows(preset: VideoPreset) -> int:
        """Rows of the text cache: one, or as many as of the cache where chunks of different prompts share a pass."""
        return 1

    @property
    def texts(self) -> list[tuple[int, ChunkSlot]]:
        """Which row of the text cache must hold the prompt of which chunk; empty where the first row serves all."""
        return []

    @abstractmethod
    def latency_ticks(self, steps: int) -> int:
        """Ticks from a chunk's birth to its end, with so many steps."""

    @property
    def fixed_steps(self) -> bool:
        """Whether each step has a place of its own: a chunk of input frames leaves none away, and none can have more
        than the preset."""
        return False

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture can begin the video: it is passed clean."""
        return True

    @property
    def recaches(self) -> bool:
        """Whether the cache holds clean frames, which can be passed again with another prompt."""
        return True

    @property
    def can_rewind(self) -> bool:
        """Whether nothing of a chunk is left in flight when the next one is born."""
        return False

    @abstractmethod
    def ready(self, steps: int) -> bool:
        """Whether a chunk of so many steps may be born in this tick. Chunks end in the order of their births."""

    @abstractmethod
    def has_work(self, *, draining: bool) -> bool:
        """Whether a tick would do something. draining: no more chunks come."""

    @abstractmethod
    def bear(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        """Take a chunk in. context: what is passed before it, see Memory."""

    @abstractmethod
    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[Task, ...]]]:
        """The passes of this tick. The cache is made ready for them, once, however often they are tried."""

    @abstractmethod
    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        """The passes' results [C, F, h, w], in order. Returns the chunks whose latents are clean now."""

    def drop(self) -> None:
        """Forget what is in flight."""
        self.slots.clear()
        self._jobs.clear()

    # -- passes at timestep 0 ------------------------------------------------------------------------------------------

    def _queue_context(self, context: Sequence[CleanFrames]) -> None:
        self._jobs.extend(
            Job(kind="context", latents=frames.latents, actions=frames.actions, begins=True) for frames in context
        )

    def _job_request(self, job: Job, text_row: int, scale: float) -> tuple[PassRequest, tuple[Task, ...]]:
        frames = job.latents.shape[1]
        if job.begins and not job.begun:
            self._lane.begin(0, frames)
            job.begun = True
        request = self._lane.request(
            0,
            job.latents,
            (CLEAN_TIMESTEP,) * frames,
            text_row,
            actions=job.actions,
            scale=scale,
            view_frames=job.view_frames,
        )
        step = 0 if job.slot is None else len(job.slot.steps)
        task = Task(kind=job.kind, slot=job.slot, row=self._lane.kv_rows[0][0], step=step, timestep=CLEAN_TIMESTEP)
        return request, (task,)
