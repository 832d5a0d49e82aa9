"""Owns one stream of the video engine: admission of frames and chunks, controls, outputs.

Independent of batching and of the model's arithmetic: the engine collects its pass requests and delivers the results.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from pipelines.conditioning.base import StreamPlace
from pipelines.conditioning.stream import StreamConditioning
from pipelines.core.admission import check_count, check_frame
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import InputError
from pipelines.core.frame_stages import FrameStage, StageChain
from pipelines.core.slot_frames import SlotFrameQueue
from pipelines.core.stream_base import StreamBase
from pipelines.core.stream_log import StreamLog
from pipelines.core.transfers import Mark
from pipelines.core.types import Frame, StreamInfo

from .chunk_assembler import ChunkAssembler
from .chunk_factory import ChunkFactory
from .chunks import ChunkSlot
from .controls import EVENTS, check_rewind, checked, chunk_latents, default_controls, number_of_steps
from .passes import PassRequest
from .schedules import ChunkSchedule, PassPart
from .state import VideoCore
from .video_log import birth_record


class VideoStream(StreamBase):
    """See pipelines.core.contracts.Stream for the contract of every method. Made by VideoEngine.open."""

    def __init__(
        self,
        core: VideoCore,
        number: int,
        index: int,
        frame_rate: Fraction,
        control: Control,
        stages: Sequence[FrameStage],
        *,
        tick: Callable[[], None],
        leave: Callable[[int], None],
    ) -> None:
        """index: which of the engine's rows the stream uses."""
        outputs = SlotFrameQueue(core.make_readback(), frame_rate, StageChain(stages))
        super().__init__(number, StreamLog(core, number), outputs, tick=tick, leave=leave)
        self._core, self.index, self._frame_rate = core, index, frame_rate
        self._stages = tuple(stage.name for stage in stages)
        self._stream_rows = core.stream_rows(index)
        past = core.past(self._stream_rows)
        self._chunk_schedule = core.chunk_schedule(core.preset, self._stream_rows, past)
        self._chunk_factory = ChunkFactory(core, number, index, self._stream_rows, self._chunk_schedule, past)
        self._controls = checked(core, self._chunk_schedule, default_controls(core), control)
        stream_place = StreamPlace(text_rows=self._stream_rows.text_rows, negative_text=self._stream_rows.negative_text)
        self._conditioning = StreamConditioning(core.conditioners, self._controls, stream_place)
        self._past_is_stale = False  # a cut or a flush, and no chunk has begun since
        own = weakref.proxy(self)  # no cycle: a closed stream frees its memory at once
        self._assembler = ChunkAssembler(
            lambda first: chunk_latents(own._core, own._controls, first=first), core.model.codec.time_factor
        )
        self._chunk_factory.reset()
        if self._controls.rewind_to >= 0:
            self._chunk_factory.history.check(self._controls.rewind_to)
        self._log.event("open")
        self._log.change(self._controls.values)

    # -- state ---------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> StreamInfo:
        """Sizes, frame rate, the next chunk's frames, latency at the current number of steps, and what runs it."""
        own = stream_info(
            self._core,
            self._chunk_schedule,
            self._controls,
            rate=self._frame_rate,
            frames=self._assembler.next_frames,
            stages=self._stages,
        )
        return self._outputs.stages.described(own, chunk_ticks=own.latency_ticks + 1)

    @property
    def _collected(self) -> int:
        return len(self._assembler)

    @property
    def controls(self) -> Controls:
        """The controls in effect from the next tick on."""
        return self._controls

    @property
    def busy(self) -> bool:
        """Whether a tick would do something, or finished frames have not been pulled."""
        return self.has_work or self._outputs.finished

    @property
    def has_work(self) -> bool:
        """Whether a tick would do something. Called by the engine."""
        if self._controls.paused:
            return False
        return self._can_admit or self._chunk_schedule.has_work(draining=self._draining)

    @property
    def _can_admit(self) -> bool:
        content = self._assembler.next_full
        return content is not None and self._outputs.free > 0 and self._chunk_factory.ready(content, self._controls)

    @property
    def _draining(self) -> bool:
        """Whether the window is emptied: at the end, and before a chunk that cannot join it."""
        return self._flushing or (self._assembler.next_full is not None and not self._can_admit)

    # -- input ---------------------------------------------------------------------------------------------------------

    def push(self, frame: Frame) -> bool:
        """Offer a frame of exactly info.width x info.height. Returns False if there is no room or the stream is paused.

        Raises InputError for a frame of another size.
        """
        self._check_open()
        check_frame(frame, self._core.width, self._core.height)
        assembler = self._assembler
        picture = self._controls.input_use == "first-frame"
        room = assembler.has_room_for_picture() if picture else assembler.has_room(1, prompt_only=False)
        if self._controls.paused or not room:
            self._log.push(frame.seq, "refused")
            return False
        self._taken += 1
        self._log.push(frame.seq, "accepted")
        if picture:
            assembler.add_picture(frame)
        else:
            assembler.add(frame)
        return True

    def generate(self, frames: int = 1) -> bool:
        """Request prompt-only frames: all, or none (returns False) if there is not room for all or it is paused."""
        self._check_open()
        check_count(frames)
        if self._controls.paused or not self._assembler.has_room(frames, prompt_only=True):
            self._log.push(None, "refused")
            return False
        for _ in range(frames):
            self._taken += 1
            self._log.push(None, "accepted")
            self._assembler.add(None)
        return True

    # -- controls ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def apply(self, control: Control) -> int:
        """Change controls, all of them or (with a ControlError) none. Returns the tick from which the change applies.

        scene_cut and rewind_to are one-off requests: they reset themselves when the next chunk begins. rewind_to also
        restores the prompt of that time, unless the same change sets another.
        """
        self._check_open()
        current = self._controls
        rewind = control.rewind_to if control.rewind_to is not None and control.rewind_to >= 0 else None
        if rewind is not None:
            check_rewind(self._chunk_schedule)
            current = self._prompt_of(rewind)
        candidate = checked(self._core, self._chunk_schedule, current, control)
        changed = {n: v for n, v in candidate.values.items() if v != self._controls.values[n]}
        own = {n for n, value in candidate.values.items() if value != current.values[n]}
        hold = self._conditioning.change(own, candidate)
        if rewind is not None:
            self._conditioning.restore(self._chunk_factory.history.find(rewind).stream_state[0][1])
        self._controls = candidate
        hold()
        self._log.change(changed)
        return self._core.next_tick

    def _prompt_of(self, number: int) -> Controls:
        """The controls with the prompt in effect when chunk `number` began. Raises ControlError if that is not kept."""
        self._chunk_factory.history.check(number)
        texts: Control = self._chunk_factory.history.find(number).stream_state[0][0]
        return self._controls.updated(texts)

    # -- ticks (called by the engine) ----------------------------------------------------------------------------------

    def prepare_tick(self) -> None:
        """Apply prompt cuts to all chunks in flight, and begin the next chunk if it can begin."""
        in_flight = [slot.conditions for slot in self._chunk_schedule.slots]
        if self._conditioning.tick(self._controls, in_flight):
            self._past_is_stale = True
        if self._can_admit:
            self._admit_chunk()
        for row, slot in self._chunk_schedule.texts:
            self._conditioning.serve(row, slot.conditions)

    def _admit_chunk(self) -> None:
        chunk_factory, controls = self._chunk_factory, self._controls
        if controls.rewind_to >= 0:
            chunk_factory.rewind(controls.rewind_to)
        if controls.scene_cut:
            chunk_factory.past.scene_cut()
        if self._past_is_stale and controls.prompt_change == "flush":
            chunk_factory.past.flush()
        elif self._past_is_stale and self._chunk_schedule.recaches:
            chunk_factory.past.new_text()
        self._past_is_stale = False
        self._controls = controls.updated(EVENTS)
        content = self._assembler.pop()
        stream_state = self._conditioning.rewound(self._controls), self._conditioning.state()
        self._conditioning.begin(content.for_conditioners(self._controls))
        slot = chunk_factory.create(content, self._controls, self._conditioning, stream_state)
        slot.output = self._outputs.add(content.frames[: content.kept], slot.birth.first_ordinal)
        self._log.birth(birth_record(self._core, slot, self._stream_rows.kv_rows[0][0]))

    def requests(self) -> list[tuple[PassRequest, tuple[PassPart, ...]]]:
        """The passes of this tick, each with its parts for the tick log."""
        return self._chunk_schedule.requests(self._controls.guidance_scale, draining=self._draining)

    def land(self, velocities: Sequence[torch.Tensor]) -> list[ChunkSlot]:
        """Take the results of the passes, in order. Returns the chunks to decode, in order."""
        return self._chunk_schedule.land(velocities)

    def decode(self, slot: ChunkSlot) -> None:
        """Decode a chunk's latents and start the transfer of its frames to the host."""
        frames = self._core.decoders[self.index].decode(slot.latents[None])[0]
        self._chunk_factory.past.decoded(frames)
        assert slot.output is not None
        slot.output.receive(frames)

    def finish(self, slot: ChunkSlot, mark: Mark) -> None:
        """mark: reached on the device once the chunk's frames are on the host."""
        assert slot.output is not None
        slot.output.done = mark

    # -- endings -------------------------------------------------------------------------------------------------------

    def flush(self) -> list[Frame]:
        """See StreamBase. Raises InputError while paused."""
        self._check_open()
        if self._controls.paused:
            raise InputError("The stream is paused: chunks in flight cannot be finished.", "Set paused to off first.")
        return super().flush()

    def _pad(self) -> None:
        self._assembler.pad()

    def _drop(self) -> None:
        self._chunk_schedule.drop()
        self._assembler.reset()
        self._chunk_factory.reset()

    def _restart(self) -> None:
        """Nothing to do: `_drop` has reset everything."""


def stream_info(
    core: VideoCore,
    chunk_schedule: ChunkSchedule,
    controls: Controls,
    *,
    rate: Fraction,
    frames: int,
    stages: tuple[str, ...],
) -> StreamInfo:
    """rate: of prompt-only frames, frames per second. frames: missing from the chunk that the next frame goes into."""
    steps = number_of_steps(core, controls, first=False)
    return StreamInfo(
        width=core.width,
        height=core.height,
        frame_rate=rate,
        frames_per_chunk=frames,
        max_frames_per_chunk=core.max_frames,
        latency_ticks=chunk_schedule.latency_ticks(steps),
        model=core.model.name,
        dtype=str(core.model.dtype).removeprefix("torch."),
        device=str(core.model.device),
        backend=core.model.runtime.backend,
        engine="video",
        takes_actions=core.model.takes_actions,
        stages=stages,
    )
