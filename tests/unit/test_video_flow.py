"""The flow-matching schedule: the published tables exactly, and its formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from pipelines.core.errors import ControlError
from pipelines.video.flow import (
    FlowSchedule,
    FlowStep,
    StepList,
    camera_steps,
    denoised,
    euler_step,
    guided,
    noised,
    shifted,
    spaced_steps,
)
from pipelines.video.loading.families import FAMILIES

SHIFT_5, SHIFT_8 = FlowSchedule(shift=5.0), FlowSchedule(shift=8.0)
CAMERA = StepList(raw=(700, 500, 400, 200), shift=8.0, warp=False)


def euler_levels(shift: float, count: int) -> tuple[FlowStep, ...]:
    """Return the steps of undistilled models: r_i = 1 - i / count, shifted."""
    sigmas = shifted(np.linspace(1.0, 0.0, count + 1)[:-1], shift)
    return tuple(FlowStep(1000.0 * float(sigma), float(sigma)) for sigma in sigmas)


def test_the_table_of_1000() -> None:
    sigmas = SHIFT_5.sigmas
    assert sigmas.shape == (1000,)
    assert sigmas[0] == 1.0
    assert sigmas[500] == pytest.approx(5 * 0.5 / (1 + 4 * 0.5), abs=1e-15)
    assert sigmas[999] == pytest.approx(5 * 0.001 / (1 + 4 * 0.001), abs=1e-15)
    assert (np.diff(sigmas) < 0).all()
    assert (SHIFT_5.timesteps == 1000 * sigmas).all()
    assert FlowSchedule(shift=1.0).sigmas[250] == 0.75


@pytest.mark.parametrize(
    ("family", "timesteps", "sigmas"),
    [
        ("self-forcing", (1000, 937.5, 2500 / 3, 625), (1, 0.9375, 5 / 6, 0.625)),
        ("longlive", (1000, 937.5, 2500 / 3, 625), (1, 0.9375, 5 / 6, 0.625)),
        ("causal-forcing", (1000, 937.5, 2500 / 3, 625), (1, 0.9375, 5 / 6, 0.625)),
        (
            "rolling-forcing",
            (1000, 952.3810, 882.3529, 769.2308, 555.5556),
            (1, 0.952381, 0.882353, 0.769231, 0.555556),
        ),
        ("shotstream", (1000, 957.9288, 888.8889, 737.5887), (1, 0.957929, 0.888889, 0.737589)),
        ("krea", (1000, 937.5, 2500 / 3, 625, 0), (1, 0.9375, 5 / 6, 0.625, 0.00498008)),
        ("causvid", (1000, 757, 522), (1, 0.75676, 0.52174)),
        ("streamdiffusion-v2", (700, 500, 400, 200), (0.70023, 0.49972, 0.40026, 0.19835)),
        ("causal-forcing-2step", (1000, 2500 / 3), (1, 5 / 6)),
    ],
)
def test_the_steps_of_each_family(family: str, timesteps: tuple[float, ...], sigmas: tuple[float, ...]) -> None:
    """Raw steps reach the network unchanged, warped ones as in the table; sigma is that of the nearest entry."""
    steps = FAMILIES[family].preset.step_list().steps()
    assert [step.timestep for step in steps] == pytest.approx(timesteps, abs=5e-5)
    assert [step.sigma for step in steps] == pytest.approx(sigmas, abs=5e-6)


def test_raw_steps_of_text_to_video_at_shift_8() -> None:
    """The other list of StreamDiffusionV2."""
    steps = StepList(raw=(1000, 750, 500, 250), shift=8.0, warp=False).steps()
    assert [(step.timestep, round(step.sigma, 5)) for step in steps] == [
        (1000, 1.0),
        (750, 0.75026),
        (500, 0.49972),
        (250, 0.25),
    ]


def test_the_steps_of_wan_itself_are_evenly_spaced_before_the_shift() -> None:
    steps = FAMILIES["wan"].preset.step_list().steps()
    assert [step.sigma for step in steps] == pytest.approx([step.sigma for step in euler_levels(3.0, 50)], abs=1e-12)


def test_shift_8_warps_the_usual_steps_otherwise() -> None:
    """The steps of a wrapper with its own default shift, when the trained one is not set."""
    steps = StepList(raw=(1000, 750, 500, 250), shift=8.0, warp=True).steps()
    assert [step.timestep for step in steps] == pytest.approx([1000, 960, 888.8889, 727.2727], abs=5e-5)


def test_sigma_of_zero_is_the_smallest_entry_not_zero() -> None:
    assert SHIFT_5.sigma(0.0) == pytest.approx(0.00498008, abs=1e-8)
    assert SHIFT_5.warped(0) == 0.0
    assert SHIFT_5.sigma(1000.0) == 1.0


def test_sigma_is_the_nearest_entry_the_noisier_of_two() -> None:
    schedule = FlowSchedule(shift=1.0, train_steps=4)
    assert list(schedule.timesteps) == [4, 3, 2, 1]
    assert [schedule.sigma(t) for t in (4, 3.6, 3.5, 3.4, 2.5, 0)] == [1, 1, 1, 0.75, 0.75, 0.25]
    assert [schedule.warped(step) for step in (4, 3, 1, 0)] == [4, 3, 1, 0]


def test_spaced_steps_end_at_zero() -> None:
    timesteps = [step.timestep for step in spaced_steps(SHIFT_5, 5)]
    assert timesteps == pytest.approx([1000, 937.5, 833.3333, 625, 0], abs=5e-5)
    assert [step.timestep for step in spaced_steps(SHIFT_5, 4)] == pytest.approx(
        [1000, 908.8428, 713.9794, 0], abs=5e-5
    )
    weak = spaced_steps(SHIFT_5, 3, 0.5)
    assert [step.timestep for step in weak] == pytest.approx([833.3333, 625, 0], abs=5e-5)
    assert weak[-1].sigma == pytest.approx(0.00498, abs=1e-6)


def test_a_camera_enters_a_tenth_below_its_noise() -> None:
    steps = CAMERA.steps()
    assert camera_steps(steps, SHIFT_8, 0.8) == steps
    assert [step.timestep for step in camera_steps(steps, SHIFT_8, 0.7234)] == [623, 500, 400, 200]
    assert [step.timestep for step in camera_steps(steps, SHIFT_8, 0.55)] == [450, 400, 200]
    assert camera_steps(steps, SHIFT_8, 0.7234)[0].sigma == pytest.approx(0.623, abs=2e-3)


def test_levels_of_undistilled_models_are_those_of_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=8.0)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 0.0, 51)[:-1].tolist())
    ours = euler_levels(8.0, 50)
    assert [step.sigma for step in ours] == pytest.approx(theirs.sigmas[:-1].tolist(), abs=1e-6)
    assert [step.timestep for step in ours] == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)


def test_euler_steps_are_those_of_diffusers() -> None:
    theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), euler_levels(3.0, 4)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 0.0, 5)[:-1].tolist())
    torch.manual_seed(0)
    expected = latents = torch.randn(1, 2, 3, 2, 2)
    for step, after in zip(ours, (*ours[1:], FlowStep(0.0, 0.0)), strict=True):
        velocity = torch.randn_like(latents)
        expected = theirs.step(velocity, theirs.timesteps[theirs.step_index or 0], expected, return_dict=False)[0]
        latents = euler_step(latents, velocity, *(torch.full((1, 3), s.sigma) for s in (step, after)))
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)


def test_each_frame_has_its_own_level() -> None:
    """Noise levels 1, 0.25 and 0: noise, a mixture, the picture."""
    x0, noise = torch.full((1, 1, 3, 1, 1), 2.0), torch.full((1, 1, 3, 1, 1), -1.0)
    sigmas = torch.tensor([[1.0, 0.25, 0.0]])
    mixed = noised(x0, noise, sigmas)
    assert mixed.flatten().tolist() == [-1.0, 1.25, 2.0]
    assert mixed.dtype == torch.float32
    velocity = noise - x0
    assert denoised(mixed, velocity, sigmas).flatten().tolist() == [2.0, 2.0, 2.0]


def test_the_formulas_are_evaluated_in_float64() -> None:
    """In float32 this sigma is 1 and the last term is lost."""
    latents = torch.tensor([1.0 + 2.0**-23]).view(1, 1, 1, 1, 1)
    velocity = torch.ones(1, 1, 1, 1, 1)
    sigma = torch.tensor([[1 - 2.0**-40]], dtype=torch.float64)
    assert denoised(latents, velocity, sigma).item() == 2.0**-23 + 2.0**-40
    half = denoised(latents.bfloat16(), velocity.bfloat16(), torch.tensor([[0.5]]))
    assert half.dtype == torch.bfloat16


def test_guidance() -> None:
    velocity, negative = torch.tensor([3.0]), torch.tensor([1.0])
    assert guided(velocity, negative, 1.0).item() == 3.0
    assert guided(velocity, negative, 5.0).item() == 11.0
    assert guided(velocity, negative, 0.0).item() == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowSchedule(shift=0.0), "shift is 0"),
        (lambda: FlowSchedule(shift=5.0, train_steps=0), "0 steps"),
        (lambda: SHIFT_5.warped(1001), "1001 is outside"),
        (lambda: SHIFT_5.warped(-1), "-1 is outside"),
        (lambda: StepList(raw=(), shift=5.0, warp=True), "at least one"),
        (lambda: StepList(raw=(1000, 1000), shift=5.0, warp=True), "below the last"),
        (lambda: spaced_steps(SHIFT_5, 1), "at least 2"),
        (lambda: spaced_steps(SHIFT_5, 4, 0.0), "strength is 0"),
        (lambda: spaced_steps(SHIFT_5, 4, 0.001), "no room for 4"),
        (lambda: camera_steps(CAMERA.steps(), SHIFT_8, 0.1), "noise scale is 0.1"),
    ],
)
def test_values_that_make_no_schedule_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ControlError, match=message):
        make()
