"""Owns the contract of chunk schedules: which passes a stream's chunks need in a tick, and how results are applied.

Works on rows, latents and steps; independent of prompts, the codec and other streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipelines.conditioning.frames import FrameConditions
from pipelines.video.chunks import ChunkSlot
from pipelines.video.flow import CLEAN_TIMESTEP
from pipelines.video.passes import PassRequest
from pipelines.video.past import StreamPast
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset
from pipelines.video.recache import RecachePass
from pipelines.video.stream_rows import StreamRows

PassKind = Literal["denoise", "clean", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPart:
    """One chunk's part in a pass, for the tick log. row: of the cache."""

    kind: PassKind
    slot: ChunkSlot | None
    row: int
    step: int
    timestep: float


@dataclass(slots=True, kw_only=True, eq=False)
class PendingPass:
    """One queued pass. latents: [C, n, h, w], passed at timestep 0 for "clean" and "context". context: the conditions
    of its frames if they belong to no chunk in flight. recache, view_frames: see `PassRequest`.

    begins: the pass begins a chunk in the cache. begun: the cache has done so (a failed pass is retried without).
    """

    kind: PassKind
    latents: torch.Tensor
    slot: ChunkSlot | None = None
    context: FrameConditions | None = None
    begins: bool = False
    begun: bool = False
    view_frames: int | None = None
    recache: RecachePass | None = None

    @property
    def conditions(self) -> FrameConditions:
        """Conditions of its frames."""
        if self.slot is not None:
            return self.slot.conditions.frames
        assert self.context is not None
        return self.context


class ChunkSchedule(ABC):
    """The chunks of one stream in flight, oldest first."""

    def __init__(self, preset: VideoPreset, stream_rows: StreamRows, past: StreamPast) -> None:
        self._preset, self._stream_rows, self._past = preset, stream_rows, past
        self.slots: list[ChunkSlot] = []
        self._pending: deque[PendingPass] = deque()

    @staticmethod
    @abstractmethod
    def max_slots(preset: VideoPreset) -> int:
        """Maximum number of chunks in flight."""

    @staticmethod
    def max_rows(preset: VideoPreset) -> int:
        """Cache rows that a stream needs, without those for negative prompts."""
        return 1

    @staticmethod
    def text_rows(preset: VideoPreset) -> int:
        """Rows of the text cache: one, or one for each step if chunks in flight can have different prompts."""
        return 1

    @property
    def texts(self) -> list[tuple[int, ChunkSlot]]:
        """(row of the text cache, chunk whose prompt it must hold); empty if the first row serves all chunks."""
        return []

    @abstractmethod
    def latency_ticks(self, steps: int) -> int:
        """Ticks between the tick in which a chunk of this many steps begins and the one in which it is finished."""

    @property
    def fixed_steps(self) -> bool:
        """Whether each step is tied to a cache row or a position in the window: a chunk of input frames skips none, and
        no chunk can have more steps than the preset."""
        return False

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture can begin a video, which needs a clean pass."""
        return True

    @property
    def recaches(self) -> bool:
        """Whether the cache holds clean frames, which can be passed again with a new prompt."""
        return True

    @property
    def can_rewind(self) -> bool:
        """Whether a chunk has left the schedule before the next one begins."""
        return False

    @abstractmethod
    def ready(self, steps: int) -> bool:
        """Whether a chunk of this many steps can be admitted in this tick. Chunks finish in the order of admission."""

    @abstractmethod
    def has_work(self, *, draining: bool) -> bool:
        """Whether a tick would do something. draining: no more chunks follow."""

    @abstractmethod
    def admit(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        """Admit a chunk. context: what is passed before it, see `StreamPast.context`."""

    @abstractmethod
    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        """Return the passes of this tick. Prepares the cache for them only once, even if they are retried."""

    @abstractmethod
    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        """Apply the passes' results [C, F, h, w], in order. Returns the chunks whose latents are now clean."""

    def drop(self) -> None:
        """Discard everything in flight."""
        self.slots.clear()
        self._pending.clear()

    # -- passes at timestep 0 ------------------------------------------------------------------------------------------

    def _queue_context(self, context: Sequence[CleanFrames]) -> None:
        self._pending.extend(
            PendingPass(
                kind="context", latents=frames.latents, context=frames.conditions, begins=True, recache=frames.recache
            )
            for frames in context
        )

    def _pending_request(
        self, pending: PendingPass, text_row: int, scale: float
    ) -> tuple[PassRequest, tuple[PassPart, ...]]:
        frames = pending.latents.shape[1]
        if pending.begins and not pending.begun:
            self._stream_rows.begin(0, frames)
            pending.begun = True
        request = self._stream_rows.request(
            0,
            pending.latents,
            (CLEAN_TIMESTEP,) * frames,
            text_row,
            conditions=pending.conditions,
            scale=scale,
            view_frames=pending.view_frames,
            recache=pending.recache,
        )
        step = 0 if pending.slot is None else len(pending.slot.steps)
        part = PassPart(
            kind=pending.kind,
            slot=pending.slot,
            row=self._stream_rows.kv_rows[0][0],
            step=step,
            timestep=CLEAN_TIMESTEP,
        )
        return request, (part,)
