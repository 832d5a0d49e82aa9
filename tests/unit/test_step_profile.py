"""Step profiles: what is measured, how it is read for other numbers of steps, and that other weights refuse it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache.features.steps.contract import Action
from pipelines.core.errors import ModelError
from pipelines.image.engine import ImageEngine
from pipelines.image.schedule import even_timesteps
from pipelines.image.step_caches import STEP_CACHES
from pipelines.image.step_calibration import measured_profile, uncached_run
from pipelines.image.step_profile import StepProfile, weights_digest
from tests.fakes.image_model import cheap_model, stable_diffusion_schedule

PROMPTS = ("a cat", "a robot", "a dog")
CONFIG = stable_diffusion_schedule()


@pytest.fixture(scope="module")
def profile() -> StepProfile:
    return measured_profile(cheap_model(), PROMPTS, weights="abc", made="a test", steps=10, gaps=3)


def test_what_is_measured(profile: StepProfile) -> None:
    run = uncached_run(cheap_model(), PROMPTS, 10)
    assert tuple(k.timestep for k in run.steps) == profile.timesteps == even_timesteps(CONFIG, 10, 1.0)
    assert [len(row) for row in profile.pairs] == [0, 1, 2, *[3] * 7]
    true, cached, x, k = run.noises[5].double(), run.noises[3].double(), run.latents[5].double(), run.steps[5]
    pair = profile.pairs[5][1]
    velocity = k.a * true - k.b * (x - k.b * true) / k.a
    held = k.a * cached - k.b * (x - k.b * cached) / k.a
    assert pair.change == pytest.approx(float((held - velocity).abs().mean()), rel=1e-4)
    per_row = (held - velocity).abs().flatten(1).sum(1) / velocity.abs().flatten(1).sum(1)
    assert pair.error == pytest.approx(float(per_row.mean()), rel=1e-4)
    for channel in range(4):
        z, y = cached[:, channel].flatten(), true[:, channel].flatten()
        fitted = torch.linalg.lstsq(torch.stack([z, torch.ones_like(z)], 1), y[:, None]).solution.flatten()
        assert (pair.a[channel], pair.b[channel]) == pytest.approx(fitted.tolist(), rel=1e-3, abs=1e-4)
    assert pair.factor == pytest.approx(float((true * cached).sum() / (cached * cached).sum()), rel=1e-4)
    assert len(profile.ratios) == 10
    assert len(profile.polynomial) == 5


def test_pairs_of_other_timesteps(profile: StepProfile) -> None:
    times = profile.timesteps
    assert profile.pair(times[5], times[3]) == profile.pairs[5][1]
    assert profile.pair(times[5] + 20, times[3] - 20) == profile.pairs[5][1]
    assert profile.pair(times[5], times[5] + 10) is None
    assert profile.pair(times[9], times[0]) == profile.pairs[9][2]  # the longest gap


def test_it_is_read_as_it_was_written(profile: StepProfile, tmp_path: Path) -> None:
    file, routed = tmp_path / "profile.json", replace(profile, router=((True, True),) * 10, router_branch=1)
    routed.write(file)
    assert StepProfile.read(file) == routed
    file.write_text('{"format": "another"}')
    with pytest.raises(ModelError, match="cannot be read"):
        StepProfile.read(file)
    with pytest.raises(ModelError, match="made for other weights"):
        profile.check("abd")
    profile.check("abc")
    assert weights_digest([file]) != weights_digest([file, file])


@pytest.mark.parametrize("name", [name for name, cache in STEP_CACHES.items() if cache.needs_profile])
@pytest.mark.parametrize("steps", [1, 4, 10, 20])
def test_caches_start_from_a_profile(name: str, steps: int, profile: StepProfile) -> None:
    table = ((True, True), *[(True, False), (False, False), (True, True)] * 3)
    routed = replace(profile, router=table, router_branch=1)
    times = even_timesteps(CONFIG, steps, 0.7)
    started = STEP_CACHES[name].start(times, routed)
    actions = []
    for step in range(steps):
        actions.append(started.gate.action(step))
        started.gate.observe(0.01)
    assert actions[0] is Action.COMPUTE
    if started.correct is not None and steps == 10:
        factor, offset = started.correct(times[3], times[1]) or ((), ())
        assert len(factor) == len(offset) == 4


def test_a_profile_without_router_says_how_to_train_one(profile: StepProfile) -> None:
    with pytest.raises(ModelError, match="has no router for branch 1"):
        STEP_CACHES["harmonica"].start(profile.timesteps, profile)


def test_the_engine_reads_the_profile_only_where_it_is_needed(profile: StepProfile) -> None:
    read: list[str] = []

    def load() -> StepProfile:
        read.append("")
        return profile

    ImageEngine(cheap_model(load_profile=load), step_cache="taylorseer")
    assert not read
    ImageEngine(cheap_model(load_profile=load), step_cache="rectified")
    assert read
