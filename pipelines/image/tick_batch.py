"""Owns who takes part in a tick, on the host: its slots, those that are new and that end, and their extra rows.

Independent of tables and of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .slots import Slot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TickBatch:
    """Who takes part in a tick. slots: in batch order, with the guidance scale and delta of each. new: those admitted
    in it, the first `pictures` of them with pictures. finished: those that end in it. extra: columns of the slots that
    are also evaluated with their negative prompt. use_stock, use_last: whether any slot needs its stock noise, or the
    denoised latents of its last step.
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

    @classmethod
    def of(cls, slots: Sequence[Slot], scales: Sequence[float], deltas: Sequence[float]) -> TickBatch:
        """Sort out the slots of a tick."""
        new = [s for s in slots if s.step == 0]
        pictures = [s for s in new if s.birth.has_picture]
        return cls(
            slots=slots,
            scales=scales,
            deltas=deltas,
            new=[*pictures, *(s for s in new if not s.birth.has_picture)],
            pictures=len(pictures),
            finished=[s for s in slots if s.is_last_step],
            extra=[i for i, s in enumerate(slots) if s.birth.guidance.needs_extra_row(s.step, scales[i])],
            use_stock=any(s.birth.guidance.uses_stock for s in slots),
            use_last=any(s.birth.is_multistep for s in slots),
        )
