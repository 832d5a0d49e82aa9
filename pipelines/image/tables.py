"""Owns what a tick uploads: the tables that tell the device what to do with each slot, noise and pictures.

Independent of queues and of the arithmetic that reads the tables (pipelines/image/denoise.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipelines.conditioning.base import Conditioner
from pipelines.core.transfers import Uploads

from .denoise import FloatRow, IntRow
from .guidance import ExtraRow
from .reuse.layout import ReuseRow
from .slots import Slot
from .state import ImageCore
from .step_plan import ReusePlan
from .steps import FEW_STEPS
from .tick_batch import TickBatch

_WINDOWS = 4  # at most, of each entry
_REUSE = ("reuse of admit", "reuse of denoise", "reuse of finish")
_PLAN_FLOATS = ("a", "b", "c_skip", "c_out", "a_next", "w_noise", "w_eps", "inverse_b_next", "w_last")


class Reuse(NamedTuple):
    """The tables of `Passes`, on the device."""

    admit: torch.Tensor
    denoise: torch.Tensor
    finish: torch.Tensor


class TickTables:
    """The upload buffers of one lane: tables for the formulas and the conditioners, noise and pictures of new slots."""

    def __init__(self, core: ImageCore, *, shared: bool) -> None:
        """shared: whether the device reads host memory directly."""
        self.with_columns = tuple(conditioner for conditioner in core.conditioners if conditioner.columns)
        slots, frames = core.max_slots, core.frames_per_slot
        self._uploads = Uploads(
            {
                "floats": ((len(FloatRow), 2 * slots), core.work_dtype),
                "ints": ((len(IntRow), 2 * slots), torch.int64),
                **{name: ((len(ReuseRow), 2 * slots * _WINDOWS), torch.int64) for name in _REUSE},
                **{_columns_of(c): ((2 * slots, len(c.columns)), torch.float32) for c in self.with_columns},
                **_step_tables(core),
            },
            {
                "noise": ((slots, FEW_STEPS, frames, *core.latent_shape), core.work_dtype),
                "pictures": ((slots, frames, core.height, core.width, 3), torch.uint8),
            },
            core.model.device,
            shared=shared,
        )
        device = self._uploads.device
        self.floats, self.ints, self.noise, self.pictures = (
            device(name) for name in ("floats", "ints", "noise", "pictures")
        )
        self.reuse = Reuse(*(device(name) for name in _REUSE))

    def step_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two tables of the engine's step cache, on the device."""
        return self._uploads.device("steps ints"), self._uploads.device("steps floats")

    def columns(self) -> Mapping[str, torch.Tensor]:
        """Return the tables of the conditioners that have columns, by name, on the device."""
        return {c.name: self._uploads.device(_columns_of(c)) for c in self.with_columns}

    def fill(self, batch: TickBatch, finished: Sequence[int], reuse: ReusePlan | None = None) -> None:
        """Fill the host buffers. finished: of each slot that ends, the column of the batch in which it was stepped.
        reuse: what the step cache has planned, if the engine has one."""
        self._uploads.begin()
        self._fill_columns(batch)
        ints = self._uploads.table("ints")
        ints[IntRow.FINISHED, : len(finished)] = finished
        for name, plan in zip(_REUSE, batch.passes, strict=True):
            if plan is not None:
                self._uploads.table(name)[:, : len(plan.columns)] = np.array(plan.columns).T
        for index, slot in enumerate(batch.new):
            self._fill_entry(index, slot)
        owners = [*batch.slots, *(batch.slots[column] for column in batch.extra)]
        for conditioner in self.with_columns:
            table = self._uploads.table(_columns_of(conditioner))
            table[: len(owners)] = [slot.conditions.columns[conditioner.name] for slot in owners]
        if reuse is not None:
            reuse.fill(self._uploads.table("steps ints"), self._uploads.table("steps floats"))

    def tables_copy(self) -> Callable[[], None]:
        """Return the call that sends what `fill` wrote to the tables."""
        return self._uploads.tables_copy()

    def array_copies(self, batch: TickBatch) -> list[Callable[[], None]]:
        """Return the calls that send noise and pictures of the new slots."""
        noise = [
            self._uploads.array_copy("noise", index, slice(slot.birth.noise.fields))
            for index, slot in enumerate(batch.new)
        ]
        return [*noise, self._uploads.array_copy("pictures", slice(batch.pictures))] if batch.pictures else noise

    def _fill_columns(self, batch: TickBatch) -> None:
        floats, ints = self._uploads.table("floats"), self._uploads.table("ints")
        slots = len(batch.slots)
        floats[: FloatRow.ENTRY_A, :slots] = np.array(
            [
                _floats_of(slot, scale, delta)
                for slot, scale, delta in zip(batch.slots, batch.scales, batch.deltas, strict=True)
            ]
        ).T
        ints[: IntRow.ENTRY_ROW, :slots] = np.array(
            [_ints_of(slot, column) for column, slot in enumerate(batch.slots)], dtype=np.int64
        ).T
        for entry, column in enumerate(batch.extra, start=slots):  # an extra row gets what its owner has
            floats[: FloatRow.ENTRY_A, entry] = floats[: FloatRow.ENTRY_A, column]
            ints[: IntRow.ENTRY_ROW, entry] = ints[: IntRow.ENTRY_ROW, column]
            ints[IntRow.CELL, entry] += 1
            ints[IntRow.EXTRA, column] = entry

    def _fill_entry(self, index: int, slot: Slot) -> None:
        uploads, birth, first = self._uploads, slot.birth, slot.birth.plan[0]
        floats = uploads.table("floats")
        floats[FloatRow.ENTRY_A, index] = first.a if birth.has_picture else 0.0
        floats[FloatRow.ENTRY_B, index] = first.b if birth.has_picture else 1.0
        uploads.table("ints")[IntRow.ENTRY_ROW, index] = slot.row
        noise = uploads.host("noise")[index]
        noise[0] = birth.noise.entry
        if birth.noise.fields > 1:
            noise[1 : birth.noise.fields] = birth.noise.later
        if birth.has_picture:
            pictures = uploads.host("pictures")[index].numpy()
            for place, frame in enumerate(birth.frames):
                assert frame is not None
                pictures[place] = frame.image


def _floats_of(slot: Slot, scale: float, delta: float) -> list[float]:
    """Return a slot's column of the float table, up to `FloatRow.STOCK_START`."""
    step, guidance = slot.birth.plan[slot.step], slot.birth.guidance
    column = [float(getattr(step, name)) for name in _PLAN_FLOATS]
    first_extra = guidance.extra is ExtraRow.FIRST_STEP and slot.step == 0
    return [
        *column,
        guidance.gain(scale),
        delta,
        float(guidance.extra is ExtraRow.EVERY_STEP),
        float(guidance.uses_stock),
        float(first_extra),
    ]


def _ints_of(slot: Slot, column: int) -> list[int]:
    """Return a slot's column of the integer table, up to `IntRow.EXTRA`."""
    # Where a step adds no noise, as the last one never does, any cell of its own row will do.
    following = slot.step + 1
    noise = slot.row * FEW_STEPS + (following if following < slot.birth.noise.fields else 0)
    return [slot.row, 2 * slot.row, slot.birth.plan[slot.step].timestep, slot.step, noise, column]


def _step_tables(core: ImageCore) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shapes and dtypes of the tables of the engine's step cache, if it has one."""
    if core.step_reuse is None:
        return {}
    rows, entries = core.step_reuse.planner.rows, 2 * core.max_slots
    return {
        "steps ints": ((rows.ints, entries), torch.int64),
        "steps floats": ((rows.floats, entries), core.work_dtype),
    }


def _columns_of(conditioner: Conditioner) -> str:
    """Return the name of a conditioner's table among the uploads."""
    return f"columns of {conditioner.name}"
