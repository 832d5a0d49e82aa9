"""Owns who takes part in a tick, on the host: its slots, those that are new and that end, and their extra rows.

Independent of tables and of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .reuse.layout import EntryWork, PassPlan, plan_passes
from .slots import Slot


class Passes(NamedTuple):
    """How the parts of a tick are divided by reuse across frames; None: a part is one pass over all its entries."""

    admit: PassPlan | None
    denoise: PassPlan | None
    finish: PassPlan | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TickBatch:
    """Who takes part in a tick. slots: in batch order, with the guidance scale and delta of each. new: those admitted
    in it, the first `pictures` of them with pictures. finished: those that end in it. extra: columns of the slots that
    are also evaluated with their negative prompt. use_stock, use_last: whether any slot needs its stock noise, or the
    denoised latents of its last step. passes: how its parts are divided.
    """

    slots: Sequence[Slot]
    scales: Sequence[float]
    deltas: Sequence[float]
    new: Sequence[Slot]
    pictures: int
    finished: Sequence[Slot]
    extra: Sequence[int]
    use_stock: bool
    use_last: bool
    passes: Passes

    @classmethod
    def of(
        cls,
        slots: Sequence[Slot],
        scales: Sequence[float],
        deltas: Sequence[float],
        *,
        cell: int = 1,
        codec_windows: bool = True,
    ) -> TickBatch:
        """Sort out the slots of a tick. cell: latents per cell of windows. codec_windows: whether the codec encodes and
        decodes windows."""
        new = [s for s in slots if s.step == 0]
        pictures = [s for s in new if s.birth.has_picture]
        finished = [s for s in slots if s.is_last_step]
        extra = [i for i, s in enumerate(slots) if s.birth.guidance.needs_extra_row(s.step, scales[i])]
        entries = [*map(_entry, slots), *(_entry(slots[i], negative=True) for i in extra)]
        return cls(
            slots=slots,
            scales=scales,
            deltas=deltas,
            new=[*pictures, *(s for s in new if not s.birth.has_picture)],
            pictures=len(pictures),
            finished=finished,
            extra=extra,
            use_stock=any(s.birth.guidance.uses_stock for s in slots),
            use_last=any(s.birth.is_multistep for s in slots),
            passes=Passes(
                admit=plan_passes([_held(slot) for slot in pictures], cell) if codec_windows else None,
                denoise=plan_passes(entries, cell),
                finish=plan_passes([_held(slot) for slot in finished], cell) if codec_windows else None,
            ),
        )


def _entry(slot: Slot, *, negative: bool = False) -> EntryWork:
    work = slot.work
    return EntryWork(action=work.action, line=work.line(slot.step, negative=negative), windows=work.windows)


def _held(slot: Slot) -> EntryWork:
    work = slot.work
    return EntryWork(action=work.action, line=work.first_line, windows=work.windows)
