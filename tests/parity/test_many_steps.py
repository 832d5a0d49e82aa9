"""DDIM and DPM-Solver++ equal diffusers' schedulers over whole trajectories, in float64."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_multistep
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition, ImageModel, ScheduleConfig
from pipelines.image.noise import NoiseSource
from pipelines.image.schedule import even_timesteps
from pipelines.image.steps import STEP_FUNCTIONS, StepCoefficients, plan
from tests.fakes.image_model import cheap_model, frames, stable_diffusion_schedule, tiny_unet, unet_model
from tests.parity.observed import Observer

CONFIG = stable_diffusion_schedule()
OURS = {"ddim": DDIMScheduler, "dpmpp": DPMSolverMultistepScheduler}
COUNTS = [(20, 1.0), (25, 1.0), (50, 1.0), (10, 0.5), (20, 0.8), (5, 0.1), (1, 1.0), (2, 1.0)]
"""(steps, strength), for which steps / strength divides 1000: elsewhere DDIMScheduler takes its next timestep to be
t - floor(1000 / steps), which is not the one that it visits."""


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DPMSolverMultistepScheduler, which rounds latents to float32, keep them as they are."""
    patched = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", patched)


def scheduler_at(name: str, prediction: str, steps: int, strength: float) -> tuple[Any, list[int]]:
    """Return diffusers' scheduler in float64 and its last `steps` timesteps of steps / strength."""
    abar = torch.from_numpy(CONFIG.alphas_cumprod)
    options = {"prediction_type": prediction, "timestep_spacing": "trailing", "beta_schedule": "scaled_linear"}
    options |= {"clip_sample": False} if name == "ddim" else {}
    scheduler = OURS[name](beta_start=0.00085, beta_end=0.012, **options)
    scheduler.alphas_cumprod = abar
    total = round(steps / strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, about how diffusers makes an array
        scheduler.set_timesteps(total)
    if name == "dpmpp":
        visited = abar[scheduler.timesteps]
        scheduler.sigmas = torch.cat([((1 - visited) / visited).sqrt(), torch.zeros(1, dtype=torch.float64)])
        scheduler.set_begin_index(total - steps)
    return scheduler, scheduler.timesteps[total - steps :].tolist()


def predicted(x: torch.Tensor, t: int) -> torch.Tensor:
    """A network's output: a smooth function of latents and timestep."""
    return torch.tanh(1.3 * x + 0.2) * (0.5 + t / 1000) + 0.1 * x.roll(1, -1)


def advance(k: StepCoefficients, x: torch.Tensor, eps: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x_hat = (x - k.b * eps) / k.a
    return k.a_next * x_hat + k.w_noise * 1e6 + k.w_eps * eps + k.w_last * (x_hat - last), x_hat


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "strength"), COUNTS)
@pytest.mark.parametrize("name", OURS)
def test_trajectories_equal_diffusers(name: str, steps: int, strength: float, prediction: str) -> None:
    scheduler, times = scheduler_at(name, prediction, steps, strength)
    assert even_timesteps(CONFIG, steps, strength) == tuple(times)
    ours = theirs = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(steps))
    last = torch.full_like(ours, torch.nan)
    for index, k in enumerate(plan(STEP_FUNCTIONS[name], CONFIG, tuple(times))):
        theirs = scheduler.step(predicted(theirs, k.timestep), k.timestep, theirs, return_dict=False)[0]
        out = predicted(ours, k.timestep)
        eps = out if prediction == "epsilon" else k.a * out + k.b * ours
        ours, last = advance(k, ours, eps, ours if index == 0 else last)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def model_of(prediction: str) -> ImageModel:
    denoiser = UNetDenoiser(
        tiny_unet(torch.float64),
        schedule=CONFIG,
        prediction_type=prediction,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    return cheap_model(name="tiny-unet", dtype=torch.float64, denoiser=denoiser, schedule=CONFIG)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", OURS)
def test_the_engine_equals_diffusers(name: str, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots in flight at different steps, beside few-step slots of another stream in the same rows and batches."""
    steps, strength, model = 10, 0.5, model_of(prediction)
    engine = ImageEngine(model, max_slots=4, work_dtype=torch.float64)
    stream = engine.open(Control.of({"prompt": "a", "step_function": name, "steps": steps, "strength": strength}))
    beside = engine.open(Control.of({"prompt": "b", "steps": 2, "guidance_mode": "self", "guidance_scale": 1.5}))
    observer, pictures = Observer(engine, monkeypatch), frames(6)
    for picture in pictures:
        beside.push(picture)
        while not stream.push(picture):
            observer.tick()
            stream.pull()
        observer.tick()
        beside.pull()
    while stream.active:
        observer.tick()
    for number, picture in enumerate(pictures):
        expected = stock_loop(model, name, prediction, steps, strength, picture)
        torch.testing.assert_close(
            torch.cat(observer.traces[0, number].latents), torch.cat(expected), rtol=1e-9, atol=1e-9
        )


def stock_loop(
    model: ImageModel, name: str, prediction: str, steps: int, strength: float, picture: Frame
) -> list[torch.Tensor]:
    """Return the latents after each step of the loop in diffusers' image-to-image pipelines."""
    scheduler, times = scheduler_at(name, prediction, steps, strength)
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].double() / 127.5 - 1
    noise = NoiseSource(1, (4, 8, 8), 8).locked(2, 1).entry.double()
    abar = CONFIG.alphas_cumprod[times[0]]
    x = abar**0.5 * model.runtime.codec.encode(image) + (1 - abar) ** 0.5 * noise
    text = model.prompts.encode("a").embeds[None].double()
    latents = []
    for t in times:
        out = tiny_unet(torch.float64)(x, t, encoder_hidden_states=text, return_dict=False)[0]
        x = scheduler.step(out, t, x, return_dict=False)[0]
        latents.append(x)
    return latents


def test_stock_noise_explains_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """X = a z + b s after every step of a multistep method too."""
    engine = ImageEngine(unet_model(torch.float64), max_slots=1, work_dtype=torch.float64)
    control = {"prompt": "a", "step_function": "dpmpp", "steps": 8, "strength": 0.5, "guidance_mode": "self"}
    stream, picture = engine.open(Control.of(control)), frames(1)[0]
    observer = Observer(engine, monkeypatch)
    observer.feed(stream, [picture])
    trace = observer.traces[0, 0]
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].double() / 127.5 - 1
    z, config = engine.core.codec.encode(image), ScheduleConfig(alphas_cumprod=CONFIG.alphas_cumprod)
    steps = plan(STEP_FUNCTIONS["dpmpp"], config, tuple(trace.timesteps))
    for k, x, s in zip(steps[:-1], trace.latents[:-1], trace.stock[:-1], strict=True):
        torch.testing.assert_close(x, k.a_next * z + s / k.inverse_b_next, rtol=1e-9, atol=1e-9)


def test_the_condition_is_plain() -> None:
    """The comparison above calls the network as the engine does."""
    model = model_of("epsilon")
    x, t = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([499])
    text = model.prompts.encode("a").embeds[None]
    condition = Condition(embeds=text, pooled=None, time_ids=None, row=t, step=t)
    x0 = model.runtime.denoiser(x, t, condition)
    out = tiny_unet(torch.float64)(x, t, encoder_hidden_states=text.double(), return_dict=False)[0]
    abar = CONFIG.alphas_cumprod[499]
    torch.testing.assert_close(x0, (x - (1 - abar) ** 0.5 * out) / abar**0.5)
