"""The ring-batched engine equals plain sequential denoising: every guidance mode, F, number of steps, step function."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.fakes.image_model import unet_model
from tests.parity.comparison import Case, compare
from tests.parity.conftest import Report

MODES = ("none", "full", "self", "onetime")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("frames_per_slot", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_lcm_equals_sequential(
    mode: str, frames_per_slot: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    model = unet_model(dtype)
    for steps in (1, 2, 3, 4):
        case = Case(mode=mode, steps=steps, frames_per_slot=frames_per_slot)
        _check(case, model.dtype, f"lcm {mode} F={frames_per_slot} steps={steps}", monkeypatch, report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("step_function", ["tcd", "turbo", "ddim", "dpmpp"])
@pytest.mark.parametrize("mode", MODES)
def test_other_step_functions_equal_sequential(
    mode: str, step_function: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    case = Case(mode=mode, step_function=step_function, steps=3, strength=0.7, frames_per_slot=2)
    _check(case, dtype, f"{step_function} {mode} F=2 steps=3", monkeypatch, report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("mode", MODES)
def test_prompt_only_equals_sequential(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    case = Case(mode=mode, steps=2, prompt_only=True)
    _check(case, dtype, f"prompt-only lcm {mode} F=1 steps=2", monkeypatch, report)


def _check(case: Case, dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    with monkeypatch.context() as patch:
        # In float64 whole trajectories; in float32 each step alone.
        differences = compare(replace(case, each_step_alone=dtype == torch.float32), unet_model(dtype), patch)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    kind = str(dtype).removeprefix("torch.")
    assert report(f"{name} {kind} noise", differences.eps) <= tolerance
    assert report(f"{name} {kind} latents / max(1, b/a)", differences.latents) <= tolerance
    if differences.stock:
        assert report(f"{name} {kind} stock / max(1, b/a)", differences.stock) <= tolerance
