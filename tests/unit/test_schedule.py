"""Timesteps equal those of diffusers' LCMScheduler; impossible values are refused with a remedy."""

from __future__ import annotations

import pytest
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from pipelines.core.errors import ControlError
from pipelines.image.schedule import levels, timesteps
from tests.fakes.image_model import stable_diffusion_schedule

CONFIG = stable_diffusion_schedule()


def test_grid_of_steps_and_strengths_is_diffusers() -> None:
    scheduler, compared = LCMScheduler(), 0
    for percent in range(2, 101):
        for steps in range(1, 9):
            strength = percent / 100
            if int(50 * strength) < steps:
                with pytest.raises(ControlError):
                    timesteps(CONFIG, steps, strength)
                with pytest.raises(ValueError):
                    scheduler.set_timesteps(steps, strength=strength)
                continue
            scheduler.set_timesteps(steps, strength=strength)
            assert timesteps(CONFIG, steps, strength) == tuple(scheduler.timesteps.tolist())
            compared += 1
    assert compared > 700


def test_too_little_strength_names_the_remedy() -> None:
    with pytest.raises(ControlError) as caught:
        timesteps(CONFIG, 4, 0.05)
    assert "room for only 2 of the 4 steps" in caught.value.message
    assert caught.value.remedy == "Raise strength to at least 0.08, or lower steps to 2."
    assert len(timesteps(CONFIG, 4, 0.08)) == 4
    assert len(timesteps(CONFIG, 2, 0.05)) == 2


def test_levels_are_of_unit_variance() -> None:
    a, b = levels(CONFIG, 499)
    assert a * a + b * b == pytest.approx(1.0, abs=1e-15)
    assert levels(CONFIG, 0)[0] == pytest.approx((1 - 0.00085) ** 0.5)
