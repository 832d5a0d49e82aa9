"""Owns how a full chunk of frames becomes a chunk in flight: its steps, its initial latents, and its context passes.

Uses the controls, the memory and the codec's row of one stream; independent of ticks and outputs.
"""

from __future__ import annotations

from typing import Any

import torch

from pipelines.conditioning.stream import StreamConditioning
from pipelines.core.controls import Controls

from .chunk_steps import ChunkSteps
from .chunks import ChunkBirth, ChunkSlot, FullChunk
from .controls import chunk_plan, number_of_steps
from .flow import noised
from .input_latents import InputLatents
from .motion import MotionNoise
from .past import StreamPast
from .past.rewind import RewindBuffers, RewindHistory, RewindPoint
from .sampling import SAMPLERS
from .schedules import ChunkSchedule
from .state import VideoCore
from .stream_rows import StreamRows


class ChunkFactory:
    """Makes the chunks of one stream, and counts them."""

    def __init__(
        self,
        core: VideoCore,
        stream: int,
        index: int,
        stream_rows: StreamRows,
        chunk_schedule: ChunkSchedule,
        past: StreamPast,
    ) -> None:
        self._core, self._stream, self._index = core, stream, index
        self._stream_rows, self._chunk_schedule, self.past = stream_rows, chunk_schedule, past
        self._motion, self._inputs = MotionNoise(), InputLatents(core, index)
        self.history = RewindHistory(
            core.options.rewind_bytes if chunk_schedule.can_rewind else 0, self._rewind_buffers
        )
        self._has_encoder_buffers = False
        self._start()

    def _start(self) -> None:
        self.chunks = 0  # created so far
        self._latents = 0
        self._ordinal = 0  # prompt-only frames so far
        self._created = 0  # chunks, including those that were rewound

    @property
    def first(self) -> bool:
        """Whether the next chunk begins the stream."""
        return self._latents == 0

    def restart(self) -> None:
        """Begin a new video; ordinals of prompt-only frames continue."""
        self.past.restart()
        self._core.decoders[self._index].decoder.reset()
        self._motion.reset()
        self._inputs.mark_gap()
        self.history.clear()
        self._latents = 0

    def reset(self) -> None:
        """Return to the initial state."""
        self.restart()
        self._start()

    def ready(self, content: FullChunk, controls: Controls) -> bool:
        """Whether this chunk can begin in this tick."""
        steps = 0 if content.is_picture else number_of_steps(self._core, controls, first=self.first)
        return self._chunk_schedule.ready(steps)

    def create(
        self, content: FullChunk, controls: Controls, conditioning: StreamConditioning, stream_state: Any
    ) -> ChunkSlot:
        """Create a chunk that `conditioning` has already begun. stream_state: what the stream needs to be rewound to
        this chunk."""
        if content.is_picture:
            self.restart()
        elif not self.first:
            self._save_rewind_point(stream_state)
        context = self.past.context()
        plan, strength = self._plan(content, controls)
        birth = ChunkBirth(
            stream=self._stream,
            number=self.chunks,
            content=content,
            controls=controls,
            plan=plan,
            sampler=SAMPLERS[self._core.preset.sampler],
            first_latent=self._latents,
            first_ordinal=self._ordinal,
            strength=strength,
        )
        index = self._created % len(self._stream_rows.latents)
        fields = {name: memory[index][: content.latents] for name, memory in self._stream_rows.fields.items()}
        conditions = conditioning.share(content.for_conditioners(controls), fields)
        slot = ChunkSlot(birth, self._stream_rows.latents[index][:, : content.latents], conditions)
        self._fill(slot)
        self._chunk_schedule.admit(slot, context)
        self._latents += content.latents
        self._ordinal += content.kept if content.frames[0] is None else 0
        self.chunks += 1
        self._created += 1
        return slot

    def _plan(self, content: FullChunk, controls: Controls) -> tuple[ChunkSteps, float]:
        if content.is_picture:
            return ChunkSteps(steps=()), 0.0
        scale = None
        if content.has_input:
            images = [frame.image for frame in content.frames if frame is not None]
            controlled = controls.noise_control
            scale = self._motion.scale(images, controls.strength, controlled=controlled)
        else:
            self._motion.reset()
            self._inputs.mark_gap()
        same = self._chunk_schedule.fixed_steps
        plan = chunk_plan(self._core, controls, first=self.first, noise_scale=scale, same_number=same)
        return plan, 1.0 if scale is None else scale

    def _fill(self, slot: ChunkSlot) -> None:
        """Write the latents that the chunk starts from."""
        content = slot.birth.content
        if content.is_picture:
            slot.latents.copy_(self._inputs.picture(content))
            return
        noise = slot.noise(0)
        if not content.has_input:
            slot.latents.copy_(noise)
            return
        clean = self._inputs.encode(content, first=self.first).to(noise.dtype)
        level = torch.full((1, 1), slot.birth.plan.mix, dtype=torch.float64, device=clean.device)
        slot.latents.copy_(noised(clean[None], noise[None], level)[0])

    # -- rewinding -----------------------------------------------------------------------------------------------------

    def _rewind_buffers(self, device: str | None = None) -> RewindBuffers:
        """Allocate the buffers of one rewind point. device: None: each where its source is."""
        core = self._core
        return RewindBuffers(
            cache=tuple(core.cache.snapshot_buffers(device) for _ in self._stream_rows.all_kv_rows),
            decoder=core.decoders[self._index].decoder.snapshot_buffers(device),
            encoder=None,
            past=tuple(torch.empty_like(tensor, device=device) for tensor in self.past.tensors),
        )

    def _save_rewind_point(self, stream_state: Any) -> None:
        core = self._core
        if core.has_encoder and not self._has_encoder_buffers:
            self.history.add_encoder(core.encoder.snapshot_buffers)
            self._has_encoder_buffers = True
        buffers = self.history.free_buffers()
        if buffers is None:
            return
        for target, tensor in zip(buffers.past, self.past.tensors, strict=True):
            target.copy_(tensor)
        rows = zip(self._stream_rows.all_kv_rows, buffers.cache, strict=True)
        encoder = None if buffers.encoder is None else core.encoder.snapshot(self._index, into=buffers.encoder)
        self.history.add(
            RewindPoint(
                number=self.chunks,
                buffers=buffers,
                cache=tuple(core.cache.snapshot(row, into=into) for row, into in rows),
                decoder=core.decoders[self._index].decoder.snapshot(0, into=buffers.decoder),
                encoder=encoder,
                past=self.past.host_state(),
                stream_state=(stream_state, self._latents, self._motion.state(), self._inputs.fresh),
            )
        )

    def rewind(self, number: int) -> None:
        """Go back to the beginning of chunk `number`, which will be the next one."""
        core, point = self._core, self.history.back_to(number)
        for row, snapshot in zip(self._stream_rows.all_kv_rows, point.cache, strict=True):
            core.cache.restore(row, snapshot)
        core.decoders[self._index].decoder.restore(0, point.decoder)
        if point.encoder is not None:
            core.encoder.restore(self._index, point.encoder)
        for tensor, kept in zip(self.past.tensors, point.buffers.past, strict=True):
            tensor.copy_(kept)
        self.past.restore(point.past)
        _, self._latents, motion, fresh = point.stream_state
        self._motion.restore(motion)
        self._inputs.fresh = fresh or point.encoder is None
        self.chunks = number
