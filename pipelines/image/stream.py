"""Owns one stream of the image engine: admission, births, controls, order of outputs and exact accounting.

Knows no batch and no model arithmetic; the engine asks it for its slots and tells it which are finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
import torch

from pipelines.core.conditions import BLENDS, Transition, encode_controls
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import InputError
from pipelines.core.stream_log import StreamLog
from pipelines.core.transfers import Mark
from pipelines.core.types import Accounting, Frame, StreamInfo

from .controls import checked_controls
from .guidance import GUIDANCE_MODES
from .noise import NoiseSource
from .outputs import output_frames
from .schedule import timesteps
from .similarity import SimilarityFilter
from .slots import Birth, Slot, birth_record
from .state import ImageCore, max_steps
from .steps import STEP_FUNCTIONS, plan

_TEXT_CONTROLS = frozenset({"prompt", "negative_prompt", "prompt_blend"})


class ImageStream:
    """See pipelines.core.types.Stream for the contract of every method. Made by ImageEngine.open."""

    def __init__(
        self,
        core: ImageCore,
        number: int,
        frame_rate: Fraction,
        control: Control,
        *,
        tick: Callable[[], None],
        leave: Callable[[int], None],
    ) -> None:
        self._core, self._number, self._frame_rate = core, number, frame_rate
        self._tick, self._leave = tick, leave
        self._log = StreamLog(core, number)
        fixed = {"model": core.model.name, "width": core.width, "height": core.height}
        base = Controls().updated(Control.of({**fixed, "frames_per_slot": core.frames_per_slot}))
        self._controls = base.updated(Control.of(core.model.defaults))
        self._controls = checked_controls(self._core, self._controls, control)
        self._transition = Transition(encode_controls(core.texts, self._controls))
        self._readback = core.make_readback()
        self._noise = NoiseSource(core.frames_per_slot, core.latent_shape, max_steps())
        core.set_engine_controls(control)  # last of what may fail
        self._open = True
        self._order: deque[Slot] = deque()
        self._active: list[Slot] = []
        self._pending: list[Frame | None] = []
        self._pending_row: int | None = None
        self._start_counters()
        self._log.event("open")
        self._log.change(self._controls.values)

    def _start_counters(self) -> None:
        self._taken = self._skipped = self._out = self._generated = self._slots = 0
        pixels = self._core.width * self._core.height * 3
        self._filter = SimilarityFilter(self._controls.seed, pixels)

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> StreamInfo:
        """Sizes, rate, latency at the current number of steps, and what runs it."""
        core = self._core
        return StreamInfo(
            width=core.width,
            height=core.height,
            frame_rate=self._frame_rate,
            frames_per_chunk=core.frames_per_slot,
            latency_ticks=self._controls.steps - 1,
            model=core.model.name,
            dtype=str(core.model.dtype).removeprefix("torch."),
            device=str(core.model.device),
            backend=core.model.runtime.backend,
        )

    @property
    def accounting(self) -> Accounting:
        """Exact at any moment: taken == out + skipped + in_flight."""
        in_flight = len(self._pending) + sum(slot.birth.kept for slot in self._order)
        return Accounting(taken=self._taken, out=self._out, skipped=self._skipped, in_flight=in_flight)

    @property
    def busy(self) -> bool:
        """Whether anything is in flight, or finished and not pulled."""
        return bool(self._pending or self._order)

    @property
    def controls(self) -> Controls:
        """The state in force from the next tick on."""
        return self._controls

    @property
    def active(self) -> tuple[Slot, ...]:
        """The slots that take part in the next tick, oldest first. For the engine."""
        return tuple(self._active)

    # -- input ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def push(self, frame: Frame) -> bool:
        """Offer a frame of exactly info.width x info.height; False: no free slot. Raises InputError for other sizes."""
        self._check_open()
        self._check_image(frame)
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
        """Ask for prompt-only frames: all of them, or none (False) where there is not room for all."""
        self._check_open()
        if frames < 1:
            raise InputError(f"{frames} frames cannot be generated.", "Ask for 1 or more.")
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
        return self._readback.free - bool(self._pending)  # a partial slot takes its buffer at birth

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
        """Make a slot of the collected frames; a partial one is padded with its last frame."""
        core, controls, row = self._core, self._controls, self._pending_row
        assert row is not None
        kept, prompt_only = len(self._pending), self._pending[0] is None
        strength = 1.0 if prompt_only else controls.strength
        steps = timesteps(core.model.schedule, controls.steps, strength)
        birth = Birth(
            stream=self._number,
            number=self._slots,
            frames=(*self._pending, *[self._pending[-1]] * (core.frames_per_slot - kept)),
            kept=kept,
            controls=controls,
            strength=strength,
            guidance=GUIDANCE_MODES[controls.guidance_mode],
            plan=plan(STEP_FUNCTIONS[controls.step_function], core.model.schedule, steps),
            noise=self._noise.draw(
                controls.seed,
                len(steps),
                slot=None if controls.seed_lock else self._slots,
                walk_deg=controls.noise_walk_deg if prompt_only else None,
            ),
            first_ordinal=self._generated,
        )
        if controls.prompt_change == "glide":
            self._transition.advance(core.frames_per_slot)
        core.write_condition(row, self._transition.now)
        slot = Slot(birth, row, self._readback, self._transition.version)
        self._order.append(slot)
        self._active.append(slot)
        self._slots += 1
        self._generated += kept if prompt_only else 0
        self._pending, self._pending_row = [], None
        self._log.birth(birth_record(slot, tick=core.next_tick))

    # -- controls ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def apply(self, control: Control) -> int:
        """Change controls, all of them or (with a ControlError) none. Returns the tick from which the change holds.

        A slot that is already born, though not yet in a tick, keeps what it was born with.
        """
        self._check_open()
        candidate = checked_controls(self._core, self._controls, control)
        changed = {n: v for n, v in candidate.values.items() if v != self._controls.values[n]}
        target = encode_controls(self._core.texts, candidate) if _TEXT_CONTROLS & changed.keys() else None
        self._core.set_engine_controls(control)
        self._controls = candidate
        if target is not None:
            mix = BLENDS[candidate.prompt_blend]
            self._transition.aim(target, frames=candidate.transition_frames, mix=mix)
        self._log.change(changed)
        return self._core.next_tick

    # -- ticks (called by the engine) ----------------------------------------------------------------------------------

    def prepare_tick(self) -> None:
        """While prompt changes cut: bring every slot in flight to the condition that holds now."""
        if self._controls.prompt_change != "cut":
            return
        self._transition.advance(1)
        for slot in self._active:
            if slot.condition_version != self._transition.version:
                self._core.write_condition(slot.row, self._transition.now)
                slot.condition_version = self._transition.version

    def finish_tick(self, finished: Mapping[Slot, Mark]) -> None:
        """Let go of the rows of finished slots; their pictures wait in the readback for their turn."""
        for slot in [s for s in self._active if s in finished]:
            slot.done = finished[slot]
            self._active.remove(slot)
            self._core.ring.release(slot.row)

    # -- output --------------------------------------------------------------------------------------------------------

    def pull(self) -> list[Frame]:
        """Finished frames in input order, oldest first; never waits. Pictures that the model's safety checker flags are
        black."""
        frames: list[Frame] = []
        while self._order and self._order[0].done is not None and self._order[0].done.passed():
            slot = self._order.popleft()
            new = output_frames(slot, first_seq=self._out, frame_rate=self._frame_rate, safety=self._core.model.safety)
            frames.extend(new)
            self._out += len(new)
            self._readback.release(slot.buffer)
        return frames

    def flush(self) -> list[Frame]:
        """Tick the engine until this stream has nothing in flight; a partial slot is padded first."""
        self._check_open()
        self._log.event("flush")
        if self._pending:
            with torch.inference_mode():
                self._admit()
        while self._active:
            self._tick()
        if self._order:
            assert self._order[-1].done is not None
            self._order[-1].done.wait()
        return self.pull()

    def reset(self) -> None:
        """Drop what is in flight and start counting again; controls stay."""
        self._check_open()
        self._drop()
        self._noise.reset()
        self._start_counters()
        self._log.event("reset")

    def close(self) -> None:
        """Drop what is in flight and leave the engine. Closing twice is fine."""
        if self._open:
            self._drop()
            self._open = False
            self._leave(self._number)
            self._log.event("close")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop(self) -> None:
        for slot in self._active:
            self._core.ring.release(slot.row)
        for slot in self._order:
            self._readback.release(slot.buffer)
        if self._pending_row is not None:
            self._core.ring.release(self._pending_row)
        self._order.clear()
        self._active.clear()
        self._pending, self._pending_row = [], None

    # -- checks ------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._open:
            raise InputError("The stream is closed.", "Open a new one.")

    def _check_image(self, frame: Frame) -> None:
        wanted = (self._core.height, self._core.width, 3)
        if frame.image.shape != wanted or frame.image.dtype != np.uint8:
            raise InputError(
                f"The frame is {frame.image.dtype} {frame.image.shape}; this stream takes uint8 {wanted}.",
                "Resize it to info.width x info.height RGB.",
            )
