"""Owns the three parts of a tick in one lane: admit new slots, one step of every slot, decode finished ones.

They read and write static buffers only and never wait for the device, so each can be captured in a CUDA graph.
Independent of which slots take part and of what runs beside them: pipelines/image/tick.py decides that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from .denoise import DenoiseBatch, FloatRow, IntRow
from .prompt_keys import EMBEDS
from .reuse.codec import ReusingCodec, to_pictures
from .reuse.layout import PassLayout
from .reuse.passes import ReusingDenoiser
from .slots import Slot
from .state import ImageCore
from .step_plan import ReusePlan, all_full
from .tables import TickTables
from .tick_batch import TickBatch

_ENTRY_AXES = (1, 1, 1, 1)


class TickParts:
    """The parts of a tick, and the buffers of one lane: uploads, gathered conditions, stepped latents, pictures."""

    def __init__(self, core: ImageCore, *, shared: bool) -> None:
        """shared: whether the device reads host memory directly."""
        self._core, self._ring = core, core.ring
        self.tables = TickTables(core, shared=shared)
        frames, device = core.frames_per_slot, core.model.device
        self._decoded = torch.zeros(
            (core.max_slots * frames, core.height, core.width, 3), dtype=torch.uint8, device=device
        )
        self._step_reuse = None if core.step_reuse is None else core.step_reuse.lane(*self.tables.step_tables())
        self._batch = DenoiseBatch(
            core.ring,
            core.denoiser if self._step_reuse is None else self._step_reuse,
            self.tables.floats,
            self.tables.ints,
            conditioners=core.conditioners,
            columns=self.tables.columns(),
            time_ids=core.time_ids(),
            instead={} if core.prompt_keys is None else {EMBEDS: core.prompt_keys.cells},
        )

    def plan(self, batch: TickBatch, tick: int) -> ReusePlan | None:
        """Let the step cache, if the engine has one, plan a tick of this lane."""
        core = self._core
        if core.step_reuse is None or self._step_reuse is None:
            return None
        wait = partial(core.lanes.wait_for_row, tick=tick)
        return core.step_reuse.plan(batch, self._step_reuse, epoch=core.lora_scale, wait=wait)

    def admit(self, pictures: int, new: int, layout: PassLayout | None = None) -> None:
        """Write the entry latents a z + b n of the slots that are new in this tick (n alone where prompt-only).
        layout: how encoding is divided into passes; None: all in one."""
        floats, noise = self.tables.floats, self.tables.noise[:new]
        entry = noise[:, 0]
        latents = floats[FloatRow.ENTRY_B, :new].view(new, *_ENTRY_AXES) * entry
        if pictures:
            inputs = self.tables.pictures[:pictures].flatten(0, 1)
            encoded = self._encode(inputs, layout).view(pictures, *entry.shape[1:])
            latents[:pictures] += floats[FloatRow.ENTRY_A, :pictures].view(pictures, *_ENTRY_AXES) * encoded
        rows = self.tables.ints[IntRow.ENTRY_ROW, :new]
        self._ring.scatter("latents", rows, latents)
        self._ring.scatter("stock", rows, entry)
        self._ring.scatter("noise", rows, noise)

    def denoise(
        self,
        rows: int,
        extra: int,
        use_stock: bool,
        use_last: bool,
        layout: PassLayout | None = None,
        reuse: ReusePlan | None = None,
    ) -> None:
        """See `DenoiseBatch.run`. layout: how the entries are divided into passes; None: all in one. reuse: what `plan`
        returned; None: every slot computes."""
        if self._step_reuse is not None:
            self._step_reuse.use(all_full(rows + extra) if reuse is None else reuse)
        windows = None
        if layout is not None:
            memory = self._core.reuse_memory()
            assert memory.lines is not None, "a stream that reuses has lines"
            windows = ReusingDenoiser(
                layout, self.tables.reuse.denoise, self._core.denoiser, memory.networks, memory.lines
            )
        self._batch.run(rows, extra, use_stock, use_last, windows)

    def finish(self, finished: int, layout: PassLayout | None = None) -> None:
        """Decode the finished slots to pictures [finished F, H, W, 3] uint8. layout: as in `admit`."""
        latents = self._batch.stepped.index_select(0, self.tables.ints[IntRow.FINISHED, :finished]).flatten(0, 1)
        if layout is None:
            pictures = to_pictures(self._core.codec.decode(latents))
        else:
            pictures = self._reusing_codec().decode(layout, self.tables.reuse.finish, latents)
        self._decoded[: len(pictures)].copy_(pictures)

    def _encode(self, pictures: torch.Tensor, layout: PassLayout | None) -> torch.Tensor:
        if layout is not None:
            return self._reusing_codec().encode(layout, self.tables.reuse.admit, pictures).contiguous()
        images = pictures.permute(0, 3, 1, 2).to(self._core.work_dtype).div_(127.5).sub_(1.0)
        return self._core.codec.encode(images)

    def _reusing_codec(self) -> ReusingCodec:
        core, memory = self._core, self._core.reuse_memory()
        assert memory.held is not None, "a stream that reuses holds pictures"
        return ReusingCodec(core.codec, memory.held, memory.networks.cell, core.work_dtype)

    def read_back(self, finished: Sequence[Slot]) -> None:
        """Start copying the decoded pictures to the host buffers of their slots."""
        frames = self._core.frames_per_slot
        for index, slot in enumerate(finished):
            slot.output.receive(self._decoded[index * frames : (index + 1) * frames])
