"""Step functions against diffusers' schedulers, for single steps of arbitrary latents."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers import scheduling_lcm, scheduling_tcd

from pipelines.core.controls import Control, Controls
from pipelines.core.errors import ControlError
from pipelines.image.model import ScheduleConfig
from pipelines.image.steps import (
    STEP_FUNCTIONS,
    StepCoefficients,
    StepFunction,
    TcdStep,
    plan,
    slot_timesteps,
)

SCHEDULER_TIMES = (999, 739, 499, 259)


def _config(scheduler: scheduling_lcm.LCMScheduler | scheduling_tcd.TCDScheduler) -> ScheduleConfig:
    return ScheduleConfig(alphas_cumprod=scheduler.alphas_cumprod.double().numpy())


def _advance(k: StepCoefficients, x: torch.Tensor, eps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    x_hat = k.c_out * (x - k.b * eps) / k.a + k.c_skip * x
    return k.a_next * x_hat + k.w_noise * noise + k.w_eps * eps


def _tensors() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 8, 8, generator=random, dtype=torch.float64) for _ in range(3)]


def test_lcm_equals_diffusers_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduling_lcm.LCMScheduler()
    scheduler.set_timesteps(4)
    x, eps, noise = _tensors()
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *args, **options: noise)
    steps = plan(STEP_FUNCTIONS["lcm"], _config(scheduler), tuple(scheduler.timesteps.tolist()))
    for k, t in zip(steps, scheduler.timesteps, strict=True):
        theirs = scheduler.step(eps, t, x, return_dict=False)[0]
        torch.testing.assert_close(_advance(k, x, eps, noise), theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_tcd_equals_diffusers_at_every_step_but_the_last(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduling_tcd.TCDScheduler()
    scheduler.set_timesteps(4)
    x, eps, noise = _tensors()
    monkeypatch.setattr(scheduling_tcd, "randn_tensor", lambda *args, **options: noise)
    steps = plan(TcdStep(gamma=gamma), _config(scheduler), tuple(scheduler.timesteps.tolist()))
    for k, t in list(zip(steps, scheduler.timesteps, strict=True))[:-1]:
        theirs = scheduler.step(eps, t, x, eta=gamma, return_dict=False)[0]
        torch.testing.assert_close(_advance(k, x, eps, noise), theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("function", [*STEP_FUNCTIONS.values(), TcdStep(gamma=0.4)])
def test_next_latents_keep_the_level_of_noise(function: StepFunction) -> None:
    """Where eps and n are independent of unit variance, the noise of X' has the variance b'^2."""
    config = _config(scheduling_lcm.LCMScheduler())
    for k in plan(function, config, SCHEDULER_TIMES)[:-1]:
        assert k.w_noise**2 + k.w_eps**2 == pytest.approx(1 - k.a_next**2, rel=1e-12)
        assert 1 / k.inverse_b_next == pytest.approx((1 - k.a_next**2) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("function", [*STEP_FUNCTIONS.values(), TcdStep(gamma=0.4)])
def test_the_last_step_gives_the_denoised_latents(function: StepFunction) -> None:
    last = plan(function, _config(scheduling_lcm.LCMScheduler()), SCHEDULER_TIMES)[-1]
    assert (last.a_next, last.w_noise, last.w_eps, last.inverse_b_next) == (1.0, 0.0, 0.0, 0.0)


def test_turbo_is_plain_x0() -> None:
    (only,) = plan(STEP_FUNCTIONS["turbo"], _config(scheduling_lcm.LCMScheduler()), (999,))
    assert (only.c_skip, only.c_out) == (0.0, 1.0)


def test_many_step_functions_need_their_entry_noise_only() -> None:
    for name, function in STEP_FUNCTIONS.items():
        many = name in ("ddim", "dpmpp")
        assert (function.fresh_noise, function.noises(8)) == (not many, 1 if many else 8)
        if many:
            steps = plan(function, _config(scheduling_lcm.LCMScheduler()), SCHEDULER_TIMES)
            assert all(step.w_noise == 0 for step in steps)
            assert [step.w_last != 0 for step in steps] == (
                [False, True, True, False] if name == "dpmpp" else [False] * 4
            )


def test_the_table_allows_as_many_steps_as_the_step_functions() -> None:
    assert Controls.steps.maximum == max(function.most_steps for function in STEP_FUNCTIONS.values())
    assert Controls.steps.slider_end == min(function.most_steps for function in STEP_FUNCTIONS.values())
    assert set(Controls.step_function.choices) == set(STEP_FUNCTIONS)


def test_too_many_steps_name_the_remedy() -> None:
    config = _config(scheduling_lcm.LCMScheduler())
    with pytest.raises(ControlError) as caught:
        slot_timesteps(config, Controls().updated(Control.of({"steps": 20})), 1.0)
    assert caught.value.message == "20 steps are more than the step function lcm takes: at most 8."
    assert caught.value.remedy == "Lower steps to 8, or choose ddim or dpmpp as step_function."
    many = Controls().updated(Control.of({"steps": 30, "step_function": "ddim"}))
    with pytest.raises(ControlError) as caught:
        slot_timesteps(config, many, 0.02)
    assert caught.value.remedy == "Raise strength to at least 0.03, or lower steps to 20."
    assert len(slot_timesteps(config, many, 0.03)) == 30
