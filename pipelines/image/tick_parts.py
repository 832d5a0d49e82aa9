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
        self._reuse = None if core.reuse is None else core.reuse.lane(*self.tables.reuse())
        self._batch = DenoiseBatch(
            core.ring,
            core.denoiser if self._reuse is None else self._reuse,
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
        if core.reuse is None or self._reuse is None:
            return None
        wait = partial(core.lanes.wait_for_row, tick=tick)
        return core.reuse.plan(batch, self._reuse, epoch=core.lora_scale, wait=wait)

    def admit(self, pictures: int, new: int) -> None:
        """Write the entry latents a z + b n of the slots that are new in this tick (n alone where prompt-only)."""
        floats, noise = self.tables.floats, self.tables.noise[:new]
        entry = noise[:, 0]
        latents = floats[FloatRow.ENTRY_B, :new].view(new, *_ENTRY_AXES) * entry
        if pictures:
            images = self.tables.pictures[:pictures].flatten(0, 1).permute(0, 3, 1, 2)
            images = images.to(self._core.work_dtype).div_(127.5).sub_(1.0)
            encoded = self._core.codec.encode(images).view(pictures, *entry.shape[1:])
            latents[:pictures] += floats[FloatRow.ENTRY_A, :pictures].view(pictures, *_ENTRY_AXES) * encoded
        rows = self.tables.ints[IntRow.ENTRY_ROW, :new]
        self._ring.scatter("latents", rows, latents)
        self._ring.scatter("stock", rows, entry)
        self._ring.scatter("noise", rows, noise)

    def denoise(self, rows: int, extra: int, use_stock: bool, use_last: bool, reuse: ReusePlan | None = None) -> None:
        """See `DenoiseBatch.run`. reuse: what `plan` returned; None: every slot computes."""
        if self._reuse is not None:
            self._reuse.use(all_full(rows + extra) if reuse is None else reuse)
        self._batch.run(rows, extra, use_stock, use_last)

    def finish(self, finished: int) -> None:
        """Decode the finished slots to pictures [finished F, H, W, 3] uint8."""
        latents = self._batch.stepped.index_select(0, self.tables.ints[IntRow.FINISHED, :finished])
        images = self._core.codec.decode(latents.flatten(0, 1))
        pixels = images.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        self._decoded[: len(pixels)].copy_(pixels.permute(0, 2, 3, 1))

    def read_back(self, finished: Sequence[Slot]) -> None:
        """Start copying the decoded pictures to the host buffers of their slots."""
        frames = self._core.frames_per_slot
        for index, slot in enumerate(finished):
            slot.output.receive(self._decoded[index * frames : (index + 1) * frames])
