"""Owns one stream of the image engine: admission, controls, its slots and their ring rows.

Independent of batching and of model arithmetic: the engine reads its active slots and reports those that finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch

from cache.features.frames import Action
from cache.features.price import ReuseCounts
from pipelines.conditioning.base import NewSlot, StreamPlace
from pipelines.conditioning.stream import StreamConditioning
from pipelines.core.admission import check_count, check_frame
from pipelines.core.controls import Control, Controls
from pipelines.core.frame_stages import FrameStage, StageChain
from pipelines.core.slot_frames import SlotFrameQueue
from pipelines.core.stream_base import StreamBase
from pipelines.core.stream_log import StreamLog
from pipelines.core.transfers import Mark
from pipelines.core.types import Frame, ReuseReport, StreamInfo

from .controls import EVENTS, checked_controls
from .guidance import GUIDANCE_MODES
from .noise import NoiseSource
from .reuse.layout import SlotWork
from .reuse.stream import StreamReuse
from .safety import SafetyStage
from .similarity import SimilarityFilter
from .slots import Birth, Slot, birth_record, held_record
from .state import ImageCore
from .steps import FEW_STEPS, STEP_FUNCTIONS, plan, slot_timesteps


class ImageStream(StreamBase):
    """See pipelines.core.contracts.Stream for the contract of every method. Created by ImageEngine.open."""

    def __init__(
        self,
        core: ImageCore,
        number: int,
        frame_rate: Fraction,
        control: Control,
        stages: Sequence[FrameStage],
        *,
        tick: Callable[[], None],
        leave: Callable[[int], None],
    ) -> None:
        safety = [] if core.model.safety is None else [SafetyStage(core.model.safety)]
        outputs = SlotFrameQueue(core.make_readback(), frame_rate, StageChain([*safety, *stages]))
        super().__init__(number, StreamLog(core, number), outputs, tick=tick, leave=leave)
        self._core, self._frame_rate = core, frame_rate
        self._stages = tuple(stage.name for stage in stages)
        fixed = {"model": core.model.name, "width": core.width, "height": core.height}
        base = Controls().updated(Control.of({**fixed, "frames_per_slot": core.frames_per_slot}))
        self._controls = base.updated(Control.of(core.model.defaults))
        self._controls = checked_controls(self._core, self._controls, control)
        self._conditioning = StreamConditioning(core.conditioners, self._controls, StreamPlace())
        self._noise = NoiseSource(core.frames_per_slot, core.latent_shape, FEW_STEPS)
        self._reuse = StreamReuse(core)
        self._reuse.configure(self._controls)
        core.set_engine_controls(control)  # the last call that may fail
        self._active: list[Slot] = []
        self._pending: list[Frame | None] = []
        self._pending_row: int | None = None
        self._start_counters()
        self._log.event("open")
        self._log.change(self._controls.values)

    def _start_counters(self) -> None:
        self._generated = self._slots = 0
        pixels = self._core.width * self._core.height * 3
        self._filter = SimilarityFilter(self._controls.seed, pixels)

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> StreamInfo:
        """Sizes, frame rate, latency at the current number of steps, and what the model runs on."""
        core = self._core
        own = StreamInfo(
            width=core.width,
            height=core.height,
            frame_rate=self._frame_rate,
            frames_per_chunk=core.frames_per_slot,
            latency_ticks=self._controls.steps - 1,
            model=core.model.name,
            dtype=str(core.model.dtype).removeprefix("torch."),
            device=str(core.model.device),
            backend=core.runtime.backend,
            stages=self._stages,
        )
        return self._outputs.stages.described(own, chunk_ticks=1)

    @property
    def busy(self) -> bool:
        """Whether anything is in flight, or finished but not pulled."""
        return bool(self._pending) or self._outputs.waiting

    @property
    def controls(self) -> Controls:
        """The state in force from the next tick on."""
        return self._controls

    @property
    def reuse(self) -> ReuseReport | None:
        """What was taken over from earlier frames; None while the control is off."""
        return self._reuse.report

    @property
    def reuse_counts(self) -> ReuseCounts:
        """What was done with the frames so far."""
        return self._reuse.counts

    @property
    def active(self) -> tuple[Slot, ...]:
        """The slots that take part in the next tick, oldest first. Read by the engine."""
        return tuple(self._active)

    @property
    def rows(self) -> tuple[int, ...]:
        """The ring rows that the stream holds. Read by the engine."""
        pending = () if self._pending_row is None else (self._pending_row,)
        return (*(slot.row for slot in self._active), *pending)

    @property
    def has_work(self) -> bool:
        return bool(self._active)

    @property
    def _collected(self) -> int:
        return len(self._pending)

    # -- input ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def push(self, frame: Frame) -> bool:
        """Offer a frame of exactly info.width x info.height; False: no free slot. Raises InputError for other sizes."""
        self._check_open()
        check_frame(frame, self._core.width, self._core.height)
        if not self._has_room(1, prompt_only=False):
            self._log.push(frame.seq, "refused")
            return False
        self._taken += 1
        if self._controls.similarity_filter and self._filter.skips(
            frame.image,
            self._controls.similarity_threshold,
            self._controls.similarity_max_skips,
        ):
            self._skipped += 1
            self._log.push(frame.seq, "skipped")
            return True
        self._log.push(frame.seq, "accepted")
        self._collect(frame)
        return True

    @torch.inference_mode()
    def generate(self, frames: int = 1) -> bool:
        """Request prompt-only frames: either all of them, or none (False) if there is not enough room."""
        self._check_open()
        check_count(frames)
        if not self._has_room(frames, prompt_only=True):
            self._log.push(None, "refused")
            return False
        for _ in range(frames):
            self._taken += 1
            self._log.push(None, "accepted")
            self._collect(None)
        return True

    def _has_room(self, frames: int, *, prompt_only: bool) -> bool:
        size = self._core.frames_per_slot
        fits_pending = bool(self._pending) and (self._pending[0] is None) == prompt_only
        left_over = max(0, frames - (size - len(self._pending) if fits_pending else 0))
        needed = -(-left_over // size)
        in_flight = len(self._active) + bool(self._pending)
        depth = min(self._controls.depth, self._core.max_slots)
        return needed == 0 or needed <= min(depth - in_flight, self._core.ring.free_rows, self._free_buffers())

    def _free_buffers(self) -> int:
        return self._outputs.free - bool(self._pending)  # a partial slot acquires its buffer when it is admitted

    def _collect(self, frame: Frame | None) -> None:
        if self._pending and (self._pending[0] is None) != (frame is None):
            self._admit()
        if not self._pending:
            self._pending_row = self._core.ring.acquire()
            assert self._pending_row is not None
        self._pending.append(frame)
        if len(self._pending) == self._core.frames_per_slot:
            self._admit()

    def _admit(self) -> None:
        """Turn the collected frames into a slot, or let them repeat what is held. A partial slot is padded with its
        last frame."""
        size, row = self._core.frames_per_slot, self._pending_row
        assert row is not None
        kept, prompt_only = len(self._pending), self._pending[0] is None
        frames = (*self._pending, *[self._pending[-1]] * (size - kept))
        self._pending, self._pending_row = [], None
        new = NewSlot(controls=self._controls, inputs=frames, frames=size)
        self._conditioning.begin(new)
        work = self._reuse.choose(frames, self._controls, self._conditioning.now, self._active)
        if work.action is Action.HOLD:
            self._core.ring.release(row)
            self._outputs.repeat(frames[:kept], self._generated)
            self._log.birth(held_record(self._number, self._slots, self._controls, frames[:kept], self._core.next_tick))
        else:
            self._start(new, kept, row, work)
        self._slots += 1
        self._generated += kept if prompt_only else 0

    def _start(self, new: NewSlot, kept: int, row: int, work: SlotWork) -> None:
        """Let a slot take part in ticks. kept: the number of its frames that are not padding."""
        core, controls, prompt_only = self._core, self._controls, new.inputs[0] is None
        strength = 1.0 if prompt_only else controls.strength
        steps, function = (
            slot_timesteps(core.model.schedule, controls, strength),
            STEP_FUNCTIONS[controls.step_function],
        )
        birth = Birth(
            stream=self._number,
            number=self._slots,
            frames=new.inputs,
            kept=kept,
            controls=controls,
            strength=strength,
            guidance=GUIDANCE_MODES[controls.guidance_mode],
            plan=plan(function, core.model.schedule, steps),
            noise=self._noise.draw(
                controls.seed,
                function.noises(len(steps)),
                slot=None if controls.seed_lock else self._slots,
                walk_deg=controls.noise_walk_deg if prompt_only else None,
            ),
            first_ordinal=self._generated,
        )
        conditions = self._conditioning.share(new, core.condition_fields(row))
        slot = Slot(birth, row, self._outputs.add(birth.frames[:kept], birth.first_ordinal), conditions, work)
        self._active.append(slot)
        if self._reuse.on:
            self._outputs.keep(slot.output)
            slot.output.seen = self._reuse.observer()
        self._log.birth(birth_record(slot, tick=core.next_tick))

    # -- controls ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def apply(self, control: Control) -> int:
        """Change controls: all of them or, with a ControlError, none. Returns the tick from which the change holds.

        A slot that has been admitted, even if no tick has run it yet, keeps what was fixed then.
        """
        self._check_open()
        candidate = checked_controls(self._core, self._controls, control)
        changed = {n: v for n, v in candidate.values.items() if v != self._controls.values[n]}
        commit = self._conditioning.change(changed, candidate)
        if changed:
            self._reuse.configure(candidate)
        self._core.set_engine_controls(control)
        self._controls = candidate.updated(EVENTS)
        commit()
        if changed:
            self._reuse.invalidate(self._active)
        self._log.change(changed)
        return self._core.next_tick

    # -- ticks (called by the engine) ----------------------------------------------------------------------------------

    def prepare_tick(self) -> None:
        """Rewrite the slots in flight where a conditioner wants them to follow (prompts that cut)."""
        before = [dict(slot.conditions.written) for slot in self._active] if self._reuse.on else []
        self._conditioning.tick(self._controls, [slot.conditions for slot in self._active])
        if self._reuse.on:
            if before != [slot.conditions.written for slot in self._active]:
                self._reuse.invalidate(self._active)
            self._reuse.follow(self._active)

    def follow_runtime(self) -> None:
        """Reuse as the engine's new runtime does. Raises ControlError if it cannot."""
        self._reuse.reopen(self._controls)
        self._reuse.invalidate(self._active)

    def finish_tick(self, finished: Mapping[Slot, Mark]) -> None:
        """Release the rows of finished slots; their pictures stay in the outputs until they are pulled, in order."""
        for slot in [s for s in self._active if s in finished]:
            slot.output.done = finished[slot]
            self._active.remove(slot)
            self._core.ring.release(slot.row)

    # -- endings -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See `StreamBase.close`; what conditioners and reuse hold for the stream is given back too."""
        if self._open:
            self._conditioning.close()
            self._reuse.close()
        super().close()

    @torch.inference_mode()
    def _pad(self) -> None:
        if self._pending:
            self._admit()

    def _drop(self) -> None:
        self._reuse.invalidate(())
        for row in self.rows:
            self._core.ring.release(row)
        self._active.clear()
        self._pending, self._pending_row = [], None

    def _restart(self) -> None:
        self._conditioning.restart()
        self._noise.reset()
        self._start_counters()
