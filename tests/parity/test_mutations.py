"""Every term of the recurrences matters: changing any one makes the comparison with the reference fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from pipelines.image import denoise
from pipelines.image.denoise import FloatRow, IntRow, StepTerms
from pipelines.image.reuse.layout import PassLayout
from pipelines.image.tables import TickTables
from pipelines.image.tick_batch import TickBatch
from pipelines.image.tick_parts import TickParts
from tests.fakes.image_model import unet_model
from tests.parity.comparison import Case, compare

TOLERANCE = 1e-9
SELF = Case(mode="self", steps=3, strength=0.08)
"""So little strength that the last step is at timestep 19, where c_skip still counts."""
ONETIME, FULL, TCD, DPMPP = (
    Case(mode="onetime", steps=3),
    Case(mode="full", steps=2),
    Case(mode="self", step_function="tcd", steps=3),
    Case(mode="self", step_function="dpmpp", steps=3),
)

Mutate = Callable[[pytest.MonkeyPatch], None]


def _term(name: str) -> Mutate:
    """One number of the formula is off by a thousandth."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = StepTerms.of

        def of(floats: torch.Tensor, rows: int) -> StepTerms:
            terms = original(floats, rows)
            return replace(terms, **{name: getattr(terms, name) * 1.001})

        patch.setattr(StepTerms, "of", of)

    return mutate


def _uploaded(change: Callable[[torch.Tensor, torch.Tensor, int, int], None]) -> Mutate:
    """change(reals, wholes, slots, extra) alters the tables of every tick."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        original = TickTables.fill

        def fill(self: TickTables, batch: TickBatch, finished: Any, reuse: None = None) -> None:
            original(self, batch, finished, reuse)
            change(self.floats, self.ints, len(batch.slots), len(batch.extra))

        patch.setattr(TickTables, "fill", fill)

    return mutate


def _level(row: FloatRow) -> Mutate:
    def change(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
        floats[row] *= 1.001

    return _uploaded(change)


def _swap(row: IntRow) -> Mutate:
    """Swap the entries of a batch's slots."""

    def change(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
        ints[row, :slots] = ints[row, :slots].flip(0)

    return _uploaded(change)


def _extra_of_another_slot(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    ints[IntRow.ROW, slots : slots + extra] = ints[IntRow.ROW, 0]
    ints[IntRow.EXTRA, :slots] = slots


def _extra_with_the_prompt(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    ints[IntRow.CELL, slots : slots + extra] -= 1


def _extra_not_used(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    ints[IntRow.EXTRA, :slots] = torch.arange(slots)


def _noise_of_this_step(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    ints[IntRow.NOISE, :slots] = (ints[IntRow.NOISE, :slots] - 1).clamp(min=0)


def _stock_never_set(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    floats[FloatRow.STOCK_START] = 0


def _stock_set_every_step(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    floats[FloatRow.STOCK_START] = 1


def _guidance_off(floats: torch.Tensor, ints: torch.Tensor, slots: int, extra: int) -> None:
    floats[FloatRow.GAIN] = 0


def _stock_stands_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(denoise, "next_stock", lambda stock, *rest: stock)


def _stock_without_its_history(patch: pytest.MonkeyPatch) -> None:
    original = denoise.next_stock
    patch.setattr(denoise, "next_stock", lambda stock, *rest: original(torch.zeros_like(stock), *rest))


def _stock_starts_at_zero(patch: pytest.MonkeyPatch) -> None:
    original = TickParts.admit

    def admit(self: TickParts, pictures: int, new: int, layout: PassLayout | None = None) -> None:
        original(self, pictures, new, layout)
        self._ring.tensor("stock")[self.tables.ints[IntRow.ENTRY_ROW, :new]] = 0

    patch.setattr(TickParts, "admit", admit)


_TERM_CASES = {
    "full": FULL,
    "stock_start": None,  # a mask: see stock_never_set
    "w_eps": TCD,
    "w_last": DPMPP,
}
MUTATIONS: dict[str, tuple[Case, Mutate]] = {
    **{f.name: (case, _term(f.name)) for f in fields(StepTerms) if (case := _TERM_CASES.get(f.name, SELF)) is not None},
    "a of the predicted noise": (SELF, _level(FloatRow.A)),
    "b of the predicted noise": (SELF, _level(FloatRow.B)),
    "a of the entry": (SELF, _level(FloatRow.ENTRY_A)),
    "b of the entry": (SELF, _level(FloatRow.ENTRY_B)),
    "row": (SELF, _swap(IntRow.ROW)),
    "text": (SELF, _swap(IntRow.CELL)),
    "timestep": (SELF, _swap(IntRow.TIMESTEP)),
    "noise": (SELF, _swap(IntRow.NOISE)),
    "noise of this step": (ONETIME, _uploaded(_noise_of_this_step)),
    "onetime: extra row of another slot": (ONETIME, _uploaded(_extra_of_another_slot)),
    "full: extra row of another slot": (FULL, _uploaded(_extra_of_another_slot)),
    "onetime: extra row with the prompt": (ONETIME, _uploaded(_extra_with_the_prompt)),
    "full: extra row with the prompt": (FULL, _uploaded(_extra_with_the_prompt)),
    "onetime: extra row not used": (ONETIME, _uploaded(_extra_not_used)),
    "full: extra row not used": (FULL, _uploaded(_extra_not_used)),
    "onetime: stock never set": (ONETIME, _uploaded(_stock_never_set)),
    "onetime: stock set at every step": (ONETIME, _uploaded(_stock_set_every_step)),
    "self: guidance off": (SELF, _uploaded(_guidance_off)),
    "self: stock stands still": (SELF, _stock_stands_still),
    "onetime: stock stands still": (ONETIME, _stock_stands_still),
    "self: stock without its history": (SELF, _stock_without_its_history),
    "self: stock starts at zero": (SELF, _stock_starts_at_zero),
}


@pytest.mark.parametrize("case", [SELF, ONETIME, FULL, TCD, DPMPP], ids=["self", "onetime", "full", "tcd", "dpmpp"])
def test_unchanged_cases_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(case, unet_model(torch.float64), monkeypatch).largest() <= TOLERANCE


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_term_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, mutate = MUTATIONS[name]
    mutate(monkeypatch)
    assert compare(case, unet_model(torch.float64), monkeypatch).largest() > 2 * TOLERANCE
