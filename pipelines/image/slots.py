"""Owns the record of one slot: what was fixed at its admission, and its current step.

Holds no tensors except the host copy of its noise; the latents are in its row of the ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache.features.frames import Action
from pipelines.conditioning.stream import SlotConditions
from pipelines.core.controls import Controls
from pipelines.core.slot_frames import SlotFrames
from pipelines.core.tick_log import BirthRecord
from pipelines.core.types import Frame

from .guidance import Guidance
from .noise import SlotNoise
from .reuse.layout import FULL_WORK, SlotWork
from .steps import StepCoefficients

NO_ROW = -1
"""In records of slots that take part in no tick."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Birth:
    """What is fixed when a slot is admitted.

    number: index among the slots of its stream. frames: its F input frames, None where prompt-only; the first `kept`
    give outputs, the rest are padding. first_ordinal: index of its first frame among the prompt-only frames of the
    stream. plan: the coefficients of its steps. controls: the state of the stream at admission.
    strength: the one its plan was made with; 1 where prompt-only.
    """

    stream: int
    number: int
    frames: tuple[Frame | None, ...]
    kept: int
    controls: Controls
    strength: float
    guidance: Guidance
    plan: tuple[StepCoefficients, ...]
    noise: SlotNoise
    first_ordinal: int

    @property
    def has_picture(self) -> bool:
        """Whether the slot has input frames; False: it is prompt-only. The frames of a slot are all of one kind."""
        return self.frames[0] is not None

    @property
    def is_multistep(self) -> bool:
        """Whether a step also uses the denoised latents of the step before."""
        return any(step.w_last for step in self.plan)


class Slot:
    """A slot in flight or waiting to be pulled.

    row: its ring row while it is in flight. output: where its pictures go. step: index of the next step.
    conditions: what conditioners wrote for it. work: what its steps compute.
    """

    __slots__ = ("birth", "conditions", "output", "row", "step", "work")

    def __init__(
        self, birth: Birth, row: int, output: SlotFrames, conditions: SlotConditions, work: SlotWork = FULL_WORK
    ) -> None:
        self.birth = birth
        self.row = row
        self.output = output
        self.step = 0
        self.conditions = conditions
        self.work = work

    @property
    def is_last_step(self) -> bool:
        """Whether the next step is the last one."""
        return self.step == len(self.birth.plan) - 1


def birth_record(slot: Slot, *, tick: int) -> BirthRecord:
    """Return the tick log's record of a new slot. tick: the next one to run."""
    birth, controls = slot.birth, slot.birth.controls
    return BirthRecord(
        tick=tick,
        stream=birth.stream,
        slot=birth.number,
        row=slot.row,
        source_seqs=tuple(None if f is None else f.seq for f in birth.frames[: birth.kept]),
        timesteps=tuple(step.timestep for step in birth.plan),
        strength=birth.strength,
        step_function=controls.step_function,
        guidance_mode=controls.guidance_mode,
        seed=controls.seed,
        seed_lock=controls.seed_lock,
        work=slot.work.action.value,
    )


def held_record(stream: int, number: int, controls: Controls, frames: Sequence[Frame | None], tick: int) -> BirthRecord:
    """Return the tick log's record of a slot that repeats the pictures of the one before it."""
    return BirthRecord(
        tick=tick,
        stream=stream,
        slot=number,
        row=NO_ROW,
        source_seqs=tuple(None if f is None else f.seq for f in frames),
        timesteps=(),
        strength=controls.strength,
        step_function=controls.step_function,
        guidance_mode=controls.guidance_mode,
        seed=controls.seed,
        seed_lock=controls.seed_lock,
        work=Action.HOLD.value,
    )
