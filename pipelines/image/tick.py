"""Owns the execution of one tick: upload, encode new slots, one step of every slot, decode finished ones.

Independent of streams: the engine decides which slots take part and what happens to finished ones. All buffers are
allocated in __init__; nothing in `run` waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.conditioning.base import Conditioner
from pipelines.core.tick_log import RowRecord, TickRecord
from pipelines.core.tick_timings import TickTimings
from pipelines.core.transfers import Mark, Uploads

from .denoise import DenoiseBatch, FloatRow, IntRow
from .guidance import ExtraRow
from .slots import Slot
from .state import ImageCore, max_steps

_PLAN_FLOATS = ("a", "b", "c_skip", "c_out", "a_next", "w_noise", "w_eps", "inverse_b_next")
_ENTRY_AXES = (1, 1, 1, 1)


class TickRunner:
    """Runs ticks for one engine. `run` takes the slots in batch order with the guidance scale and delta of each."""

    def __init__(self, core: ImageCore) -> None:
        self._core, self._ring, self._codec = core, core.ring, core.codec
        self._with_columns = tuple(conditioner for conditioner in core.conditioners if conditioner.columns)
        slots, frames, device = core.max_slots, core.frames_per_slot, core.model.device
        noise_shape = (slots, max_steps(), frames, *core.latent_shape)
        picture = (frames, core.height, core.width, 3)
        self._uploads = Uploads(
            {
                "floats": ((len(FloatRow), 2 * slots), core.work_dtype),
                "ints": ((len(IntRow), 2 * slots), torch.int64),
                "noise": (noise_shape, core.work_dtype),
                "pictures": ((slots, *picture), torch.uint8),
                **{_columns_of(c): ((2 * slots, len(c.columns)), torch.float32) for c in self._with_columns},
            },
            device,
        )
        self._floats, self._ints = self._uploads.device("floats"), self._uploads.device("ints")
        self._decoded = torch.zeros((slots * frames, *picture[1:]), dtype=torch.uint8, device=device)
        self._batch = DenoiseBatch(
            core.ring,
            core.denoiser,
            self._floats,
            self._ints,
            conditioners=core.conditioners,
            columns={c.name: self._uploads.device(_columns_of(c)) for c in self._with_columns},
            time_ids=core.time_ids(),
        )
        self.timings = TickTimings(core.log)
        self._stepped: frozenset[Slot] = frozenset()  # slots of a tick that failed after their step had been taken

    def run(self, slots: Sequence[Slot], scales: Sequence[float], deltas: Sequence[float]) -> list[tuple[Slot, Mark]]:
        """Run one step of each slot. Returns the finished slots, each with the mark that passes when its pictures are
        on the host.

        A tick that fails does not count; it can be run again, with fewer slots.
        """
        core, run = self._core, self._core.executor.run
        marks = [Mark(core.model.device) for _ in range(4)]
        marks[0].record()
        pictures = [s for s in slots if s.step == 0 and s.birth.has_picture]
        new = [*pictures, *(s for s in slots if s.step == 0 and not s.birth.has_picture)]
        finished = [s for s in slots if s.is_last_step]
        extra = [i for i, s in enumerate(slots) if s.birth.guidance.needs_extra_row(s.step, scales[i])]
        self._upload(slots, scales, deltas, extra, new, finished, len(pictures))
        stepped = self._stepped.issuperset(slots)  # only the pictures are missing
        self._stepped = frozenset()
        if new and not stepped:
            run(("admit", len(pictures), len(new)), lambda: self._admit(len(pictures), len(new)))
        marks[1].record()
        use_stock = any(s.birth.guidance.uses_stock for s in slots)
        if not stepped:
            key = ("denoise", len(slots), len(extra), use_stock)
            run(key, lambda: self._batch.run(len(slots), len(extra), use_stock))
        marks[2].record()
        if finished:
            self._stepped = frozenset(slots)
            run(("finish", len(finished)), lambda: self._finish(len(finished)))
            self._read_back(finished)
            self._stepped = frozenset()
        marks[3].record()
        self._log(slots, scales, deltas, set(extra), finished)
        self.timings.add(core.next_tick, marks)
        for slot in slots:
            slot.step += 1
        core.next_tick += 1
        return [(slot, marks[3]) for slot in finished]

    def _upload(
        self,
        slots: Sequence[Slot],
        scales: Sequence[float],
        deltas: Sequence[float],
        extra: Sequence[int],
        new: Sequence[Slot],
        finished: Sequence[Slot],
        pictures: int,
    ) -> None:
        uploads = self._uploads
        uploads.begin()
        for column, slot in enumerate(slots):
            self._fill_column(column, slot, scales[column], deltas[column])
        ints = uploads.host("ints").numpy()
        floats = uploads.host("floats").numpy()
        for entry, column in enumerate(extra, start=len(slots)):
            floats[:, entry] = floats[:, column]
            ints[:, entry] = ints[:, column]
            ints[IntRow.CELL, entry] += 1
            ints[IntRow.EXTRA, column] = entry
        for index, slot in enumerate(new):
            self._fill_entry(index, slot)
        ints[IntRow.FINISHED_ROW, : len(finished)] = [slot.row for slot in finished]
        self._fill_conditions(slots, extra)
        uploads.send("floats")
        uploads.send("ints")
        uploads.send("noise", len(new))
        uploads.send("pictures", pictures)
        uploads.end()

    def _fill_column(self, column: int, slot: Slot, scale: float, delta: float) -> None:
        floats, ints = self._uploads.host("floats").numpy(), self._uploads.host("ints").numpy()
        step, guidance = slot.birth.plan[slot.step], slot.birth.guidance
        for row, name in enumerate(_PLAN_FLOATS):
            floats[row, column] = getattr(step, name)
        floats[FloatRow.GAIN, column] = guidance.gain(scale)
        floats[FloatRow.DELTA, column] = delta
        floats[FloatRow.FULL, column] = guidance.extra is ExtraRow.EVERY_STEP
        floats[FloatRow.STOCK, column] = guidance.uses_stock
        floats[FloatRow.STOCK_START, column] = guidance.extra is ExtraRow.FIRST_STEP and slot.step == 0
        ints[IntRow.ROW, column] = slot.row
        ints[IntRow.CELL, column] = 2 * slot.row
        ints[IntRow.TIMESTEP, column] = step.timestep
        ints[IntRow.STEP, column] = slot.step
        # The last step adds no noise, so any cell of its own row will do.
        ints[IntRow.NOISE, column] = slot.row * max_steps() + (0 if slot.is_last_step else slot.step + 1)
        ints[IntRow.EXTRA, column] = column

    def _fill_conditions(self, slots: Sequence[Slot], extra: Sequence[int]) -> None:
        """Fill and send the columns of conditioners; an extra row gets those of its owner."""
        owners = [*slots, *(slots[column] for column in extra)]
        for conditioner in self._with_columns:
            table = self._uploads.host(_columns_of(conditioner)).numpy()
            table[: len(owners)] = [slot.conditions.columns[conditioner.name] for slot in owners]
            self._uploads.send(_columns_of(conditioner), len(owners))

    def _fill_entry(self, index: int, slot: Slot) -> None:
        uploads, birth, first = self._uploads, slot.birth, slot.birth.plan[0]
        floats, ints = uploads.host("floats").numpy(), uploads.host("ints").numpy()
        floats[FloatRow.ENTRY_A, index] = first.a if birth.has_picture else 0.0
        floats[FloatRow.ENTRY_B, index] = first.b if birth.has_picture else 1.0
        ints[IntRow.ENTRY_ROW, index] = slot.row
        noise = uploads.host("noise")[index]
        noise[0] = birth.noise.entry
        noise[1 : len(birth.plan)] = birth.noise.later
        if birth.has_picture:
            pictures = uploads.host("pictures")[index].numpy()
            for index, frame in enumerate(birth.frames):
                assert frame is not None
                pictures[index] = frame.image

    def _admit(self, pictures: int, new: int) -> None:
        """Write the entry latents a z + b n of the slots that are new in this tick (n alone where prompt-only)."""
        noise = self._uploads.device("noise")[:new]
        entry = noise[:, 0]
        latents = self._floats[FloatRow.ENTRY_B, :new].view(new, *_ENTRY_AXES) * entry
        if pictures:
            images = self._uploads.device("pictures")[:pictures].flatten(0, 1).permute(0, 3, 1, 2)
            images = images.to(self._core.work_dtype).div(127.5).sub(1.0)
            encoded = self._codec.encode(images).view(pictures, *entry.shape[1:])
            latents[:pictures] += self._floats[FloatRow.ENTRY_A, :pictures].view(pictures, *_ENTRY_AXES) * encoded
        rows = self._ints[IntRow.ENTRY_ROW, :new]
        self._ring.scatter("latents", rows, latents)
        self._ring.scatter("stock", rows, entry)
        self._ring.scatter("noise", rows, noise)

    def _finish(self, finished: int) -> None:
        """Decode the finished slots to pictures [finished F, H, W, 3] uint8."""
        latents = self._ring.gather("latents", self._ints[IntRow.FINISHED_ROW, :finished])
        images = self._codec.decode(latents.flatten(0, 1))
        pixels = images.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        self._decoded[: len(pixels)].copy_(pixels.permute(0, 2, 3, 1))

    def _read_back(self, finished: Sequence[Slot]) -> None:
        frames = self._core.frames_per_slot
        for index, slot in enumerate(finished):
            slot.output.receive(self._decoded[index * frames : (index + 1) * frames])

    def _log(
        self,
        slots: Sequence[Slot],
        scales: Sequence[float],
        deltas: Sequence[float],
        extra: set[int],
        finished: Sequence[Slot],
    ) -> None:
        rows = tuple(
            RowRecord(
                stream=slot.birth.stream,
                slot=slot.birth.number,
                row=slot.row,
                step=slot.step,
                timestep=slot.birth.plan[slot.step].timestep,
                extra=column in extra,
                guidance_scale=scales[column],
                guidance_delta=deltas[column],
            )
            for column, slot in enumerate(slots)
        )
        ended = tuple((slot.birth.stream, slot.birth.number) for slot in finished)
        self._core.log.add(TickRecord(tick=self._core.next_tick, rows=rows, finished=ended))


def _columns_of(conditioner: Conditioner) -> str:
    """Return the name of a conditioner's table among the uploads."""
    return f"columns of {conditioner.name}"
