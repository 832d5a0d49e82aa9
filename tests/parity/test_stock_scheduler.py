"""The engine in one-slot form equals the plain loop over diffusers' LCMScheduler, on the bundled model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_lcm

from pipelines.core.controls import Control
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.model import ImageModel
from pipelines.image.noise import NoiseSource
from tests.fakes.image_model import frames
from tests.parity.conftest import Report
from tests.parity.observed import Observer


@pytest.fixture(scope="module")
def bundled() -> ImageModel:
    return load_image_model("mini-image", LoadOptions(device="cpu", dtype="float32"))


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.5), (2, 0.5), (4, 0.9)])
def test_one_slot_equals_lcm_scheduler(
    steps: int, strength: float, bundled: ImageModel, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    engine = ImageEngine(bundled, width=96, height=96, max_slots=1)
    stream = engine.open(Control.of({"prompt": "a cat", "steps": steps, "strength": strength, "guidance_mode": "none"}))
    picture = frames(1, side_px=96)[0]
    observer = Observer(engine, monkeypatch)
    observer.feed(stream, [picture])
    engine_latents = [x[0] for x in observer.traces[0, 0].latents]
    drawn = NoiseSource(1, engine.core.latent_shape, 8).locked(stream.controls.seed, steps)
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None] / 127.5 - 1
    text = bundled.prompts.encode("a cat").embeds[None]
    noise = [drawn.entry, *drawn.later]
    with torch.no_grad():
        expected = _stock_loop(bundled, bundled.runtime.codec.encode(image), noise, text, steps, strength, monkeypatch)
    abar = bundled.schedule.alphas_cumprod
    scales = [max(1.0, float(((1 - abar[t]) / abar[t]) ** 0.5)) for t in observer.traces[0, 0].timesteps]
    differences = [(ours - theirs[0]) / s for ours, theirs, s in zip(engine_latents, expected, scales, strict=True)]
    assert report(f"LCMScheduler, mini-image, steps={steps} strength={strength}", differences) <= 1e-5


def _stock_loop(
    model: ImageModel,
    z: torch.Tensor,
    noise: list[torch.Tensor],
    text: torch.Tensor,
    steps: int,
    strength: float,
    monkeypatch: pytest.MonkeyPatch,
) -> list[torch.Tensor]:
    """Return the latents after each step of the loop in diffusers' own LCM pipelines."""
    abar = torch.from_numpy(model.schedule.alphas_cumprod)
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
    scheduler = scheduling_lcm.LCMScheduler(trained_betas=betas.tolist(), prediction_type=_prediction(model))
    scheduler.set_timesteps(steps, strength=strength)
    upcoming = iter(noise[1:])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *args, **options: next(upcoming))
    x = scheduler.add_noise(z, noise[0], scheduler.timesteps[:1])
    latents = []
    unet: Any = model.runtime.denoiser.unet  # type: ignore[attr-defined]
    for t in scheduler.timesteps:
        predicted = unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
        latents.append(x)
    return latents


def _prediction(model: ImageModel) -> str:
    """Return the prediction type of the bundled model's scheduler configuration."""
    import json
    from pathlib import Path

    root = Path(__file__).parents[2] / "assets" / "models" / model.name
    return str(json.loads((root / "scheduler" / "scheduler_config.json").read_text())["prediction_type"])
