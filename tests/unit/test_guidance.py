"""The rows of a batch in each guidance mode, and their texts."""

from __future__ import annotations

import pytest

from pipelines.core.controls import Control
from pipelines.image.engine import ImageEngine
from pipelines.image.guidance import GUIDANCE_MODES
from tests.fakes.image_model import ArithmeticDenoiser, HashPrompts, cheap_model, frames


@pytest.mark.parametrize(
    ("mode", "extra_rows"),
    [("none", [0, 0, 0, 0]), ("self", [0, 0, 0, 0]), ("full", [1, 2, 2, 1]), ("onetime", [1, 1, 0, 0])],
)
def test_extra_rows_of_two_slots_of_three_steps(mode: str, extra_rows: list[int]) -> None:
    """Slots admitted at ticks 0 and 1: rows 1, 2, 2, 1 and then extra ones with the negative prompt."""
    denoiser = ArithmeticDenoiser()
    engine = ImageEngine(cheap_model(denoiser=denoiser))
    control = {"guidance_mode": mode, "guidance_scale": 1.5, "steps": 3, "prompt": "a cat", "negative_prompt": "dull"}
    with engine.open(Control.of(control)) as stream:
        for picture in frames(2):
            assert stream.push(picture)
            engine.tick()
        stream.flush()
    rows = [1, 2, 2, 1]
    assert [len(times) for times, _ in denoiser.calls] == [r + e for r, e in zip(rows, extra_rows, strict=True)]
    prompts = HashPrompts()
    for (_, condition), count in zip(denoiser.calls, rows, strict=True):
        for entry, embeds in enumerate(condition.embeds):
            text = "a cat" if entry < count else "dull"
            assert embeds.equal(prompts.encode(text).embeds)


def test_full_guidance_at_scale_1_costs_nothing() -> None:
    assert not GUIDANCE_MODES["full"].needs_extra_row(0, 1.0)
    assert GUIDANCE_MODES["full"].gain(1.0) == 0.0
    assert GUIDANCE_MODES["full"].gain(0.2) == 0.0


def test_onetime_evaluates_its_negative_even_at_scale_1() -> None:
    """A later step may have a larger scale."""
    assert GUIDANCE_MODES["onetime"].needs_extra_row(0, 1.0)
    assert not GUIDANCE_MODES["onetime"].needs_extra_row(1, 5.0)


def test_mode_none_ignores_the_scale() -> None:
    assert GUIDANCE_MODES["none"].gain(7.0) == 0.0
