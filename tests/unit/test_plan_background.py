"""When plans are prepared beside an engine: not while its first tick runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.backends.background import PlanPreparation
from pipelines.core.origin import Origin
from pipelines.core.parts import Part
from tests.fakes.copying_recipe import CopyingRecipe

SETTLE_S = 0.1


@pytest.fixture
def preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanPreparation:
    monkeypatch.setenv("ZOETROPE_PLANS", str(tmp_path))
    return PlanPreparation(
        {"decode": CopyingRecipe()},
        backend="copied",
        origin=Origin(model="none", module="", function=""),
        device=torch.device("cpu"),
        builds=False,  # the end of the work is a notice that nothing is stored
        notice=lambda text: None,
        settle_s=SETTLE_S,
    )


def want(preparation: PlanPreparation) -> None:
    part = Part(name="decode", module=nn.Identity(), inputs={"latents": torch.zeros(1)})
    preparation.calls("decode", lambda inputs: part)
    preparation.want(part)


def test_plans_are_loaded_soon_after_the_first_tick(preparation: PlanPreparation) -> None:
    preparation.swap()  # the first tick begins
    want(preparation)
    assert not preparation.wait(2 * SETTLE_S), "loading slowed the first tick down"
    preparation.swap()
    started = time.monotonic()
    assert preparation.wait(10.0)
    assert time.monotonic() - started < 1.0
    preparation.close()


def test_plans_are_prepared_without_any_tick_too(preparation: PlanPreparation) -> None:
    preparation.swap()
    want(preparation)
    assert preparation.wait(10.0)
    preparation.close()
