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

from pipelines.conditioning.frames import FrameConditions
from pipelines.video.chunks import ChunkSlot
from pipelines.video.flow import CLEAN_TIMESTEP
from pipelines.video.passes import PassRequest
from pipelines.video.past import StreamPast
from pipelines.video.past.clean_latents import CleanFrames
from pipelines.video.presets import VideoPreset
from pipelines.video.stream_rows import StreamRows

PassKind = Literal["denoise", "clean", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPart:
    """What the tick log says of one chunk's part in a tick. row: of the cache."""

    kind: PassKind
    slot: ChunkSlot | None
    row: int
    step: int
    timestep: float


@dataclass(slots=True, kw_only=True, eq=False)
class PendingPass:
    """One pass that waits its turn. latents: [C, n, h, w], passed at timestep 0 for "clean" and "context".
    context: what conditioners say of its frames, where they are of no chunk in flight.

    begins: the cache makes room for it first. begun: it has (a pass that failed is tried again without).
    """

    kind: PassKind
    latents: torch.Tensor
    slot: ChunkSlot | None = None
    context: FrameConditions | None = None
    begins: bool = False
    begun: bool = False
    view_frames: int | None = None

    @property
    def conditions(self) -> FrameConditions:
        """Of its frames."""
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
        """Chunks in flight at most."""

    @staticmethod
    def max_rows(preset: VideoPreset) -> int:
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
    def admit(self, slot: ChunkSlot, context: Sequence[CleanFrames]) -> None:
        """Take a chunk in. context: what is passed before it, see Memory."""

    @abstractmethod
    def requests(self, scale: float, *, draining: bool) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        """The passes of this tick. The cache is made ready for them, once, however often they are tried."""

    @abstractmethod
    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        """The passes' results [C, F, h, w], in order. Returns the chunks whose latents are clean now."""

    def drop(self) -> None:
        """Forget what is in flight."""
        self.slots.clear()
        self._pending.clear()

    # -- passes at timestep 0 ------------------------------------------------------------------------------------------

    def _queue_context(self, context: Sequence[CleanFrames]) -> None:
        self._pending.extend(
            PendingPass(kind="context", latents=frames.latents, context=frames.conditions, begins=True)
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
