"""Owns the record of one chunk: its frames, what is fixed when it begins, and its progress.

Independent of the cache and of other chunks; its latents are a view of memory that its stream owns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipelines.conditioning.base import NewSlot
from pipelines.conditioning.stream import SlotConditions
from pipelines.core.controls import Controls
from pipelines.core.slot_frames import SlotFrames
from pipelines.core.types import Frame

from .chunk_noise import draw_noise
from .chunk_steps import ChunkSteps
from .codecs.codec import frames_of
from .flow import FlowStep
from .sampling import Sampler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullChunk:
    """Accepted frames that fill a chunk. frames: its inputs, None for prompt-only frames; the first `kept` give
    outputs, the rest is padding. latents: number of latent frames. is_picture: a single picture that begins a video."""

    frames: tuple[Frame | None, ...]
    kept: int
    latents: int
    is_picture: bool = False

    @property
    def has_input(self) -> bool:
        """Whether the chunk redraws input frames."""
        return self.frames[0] is not None and not self.is_picture

    def for_conditioners(self, controls: Controls) -> NewSlot:
        """Return what conditioners need to know of the chunk made of these frames."""
        return NewSlot(controls=controls, inputs=self.frames, frames=self.latents, is_picture=self.is_picture)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkBirth:
    """What is fixed when a chunk begins.

    number: index among the chunks of its stream. plan: its steps; empty for a picture. first_latent: index of its first
    latent frame in the stream. first_ordinal: index of its first frame among the stream's prompt-only frames.
    strength: the noise scale of its input; 1 for a prompt-only chunk, 0 for a picture.
    """

    stream: int
    number: int
    content: FullChunk
    controls: Controls
    plan: ChunkSteps
    sampler: Sampler
    first_latent: int
    first_ordinal: int
    strength: float

    @property
    def frames(self) -> int:
        """Number of frames that its latents decode to."""
        return frames_of(self.content.latents, first=self.first_latent == 0)


class ChunkSlot:
    """A chunk in flight, or finished but not pulled.

    latents: [C, n, h, w], memory of its stream. conditions: what conditioners wrote for it. step: index of the next
    step. output: where its frames go; set by its stream.
    """

    __slots__ = ("birth", "conditions", "latents", "output", "step")

    def __init__(self, birth: ChunkBirth, latents: torch.Tensor, conditions: SlotConditions) -> None:
        self.birth = birth
        self.latents = latents
        self.conditions = conditions
        self.output: SlotFrames | None = None
        self.step = 0

    @property
    def steps(self) -> tuple[FlowStep, ...]:
        """All its steps."""
        return self.birth.plan.steps

    @property
    def remaining(self) -> int:
        """Number of steps left."""
        return len(self.steps) - self.step

    @property
    def timestep(self) -> float:
        """Timestep of its next step."""
        return self.steps[self.step].timestep

    def noise(self, step: int) -> torch.Tensor:
        """Return noise [C, n, h, w] on the latents' device. step: 0 for the initial noise, i after the i-th step."""
        channels, frames, height, width = self.latents.shape
        controls = self.birth.controls
        drawn = draw_noise(
            (channels, height, width),
            seed=controls.seed,
            step=step,
            first_frame=self.birth.first_latent,
            frames=frames,
            locked=controls.seed_lock,
        )
        if self.latents.is_cuda:
            drawn = drawn.contiguous().pin_memory()
        return drawn.to(self.latents.device, dtype=self.latents.dtype, non_blocking=True)

    def advance(self, velocity: torch.Tensor) -> None:
        """Advance by one step. velocity: [C, n, h, w], from that step's pass."""
        now, after = self.steps[self.step], self.step + 1
        following = self.steps[after] if after < len(self.steps) else None
        moved = self.birth.sampler(self.latents, velocity, now, following, lambda: self.noise(after))
        self.latents.copy_(moved)
        self.step = after
