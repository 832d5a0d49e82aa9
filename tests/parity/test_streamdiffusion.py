"""The engine equals the package streamdiffusion 0.1.1 in the modes that it supports: one frame per slot (F = 1).

Excluded because of the package: F > 1 fails, self-negative with one step carries its stock noise over from
one frame to the next. Its first outputs (before the first frame is through) are noise and are not compared.
The package is installed separately (`pip install --no-deps streamdiffusion==0.1.1`): it requires a diffusers
of 2023, but works with today's.
"""

from __future__ import annotations

import importlib.util
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from pipelines.core.controls import Control
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ScheduleConfig
from pipelines.image.noise import NoiseSource
from tests.fakes.image_model import BlockCodec, HashPrompts, frames, tiny_unet, unet_model
from tests.parity.conftest import Report
from tests.parity.observed import Observer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("streamdiffusion") is None,
    reason="streamdiffusion is not installed (pip install --no-deps streamdiffusion==0.1.1)",
)
PROMPT, NEGATIVE, G, DELTA, FRAMES = "a cat", "blurred", 1.2, 0.9, 6
THEIR_NAMES = {"none": "none", "full": "full", "self": "self", "onetime": "initialize"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("mode", "steps"),
    [(m, s) for m in THEIR_NAMES for s in (1, 2, 3, 4) if (m, s) != ("self", 1)],
)
def test_latents_agree_step_by_step(
    mode: str, steps: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    model = unet_model(dtype, _their_schedule())
    engine = ImageEngine(model, work_dtype=dtype)
    stream = engine.open(
        Control.of(
            {
                "prompt": PROMPT,
                "negative_prompt": NEGATIVE,
                "guidance_mode": mode,
                "guidance_scale": G,
                "guidance_delta": DELTA,
                "steps": steps,
                "strength": 0.5,
            }
        )
    )
    observer = Observer(engine, monkeypatch)
    pictures = frames(FRAMES)
    for picture in pictures:
        assert stream.push(picture)
        observer.tick()
    peer = _peer(THEIR_NAMES[mode], observer.traces[0, 0].timesteps, dtype)
    differences, stocks = [], []
    for number, picture in enumerate(pictures):
        image = torch.from_numpy(picture.image).permute(2, 0, 1)[None].to(dtype) / 127.5 - 1
        with torch.no_grad():
            entry = peer.add_noise(BlockCodec().encode(image), peer.init_noise[0], 0)
            output = peer.predict_x0_batch(entry)
        for step in range(min(steps, number + 1)):
            ours = observer.traces[0, number - step]
            theirs = output[0] if step == steps - 1 else peer.x_t_latent_buffer[step]
            scale = max(1.0, float(peer.beta_prod_t_sqrt[step] / peer.alpha_prod_t_sqrt[step]))
            differences.append((ours.latents[step][0] - theirs) / scale)
            if mode in ("self", "onetime") and step < steps - 1:
                stocks.append((ours.stock[step][0] - peer.stock_noise[step]) / scale)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    name = f"streamdiffusion 0.1.1 {mode} steps={steps} {str(dtype).removeprefix('torch.')}"
    assert report(f"{name} latents / max(1, b/a)", differences) <= tolerance
    if stocks:
        # Stock noise is divided by b of the next level and fed back; in float32 its rounding is carried on.
        assert report(f"{name} stock / max(1, b/a)", stocks) <= (tolerance if dtype == torch.float64 else 3e-5)


def _peer(cfg_type: str, timesteps: list[int], dtype: torch.dtype) -> Any:
    """Return their pipeline with the same network, prompts, schedule and noise.

    They compute coefficients in float32; for float64 the same coefficients are put in at full precision.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old package among new ones
        from streamdiffusion.pipeline import StreamDiffusion

    prompts = HashPrompts()

    def encode_prompt(prompt: str, negative_prompt: str = "", **options: Any) -> list[torch.Tensor]:
        return [prompts.encode(text).embeds[None].to(dtype) for text in (prompt, negative_prompt)]

    pipe = SimpleNamespace(
        device=torch.device("cpu"),
        vae_scale_factor=2,
        scheduler=LCMScheduler(),
        text_encoder=None,
        unet=tiny_unet(dtype),
        vae=None,
        encode_prompt=encode_prompt,
    )
    t_index = [(999 - t) // 20 for t in timesteps]
    peer = StreamDiffusion(pipe, t_index, torch_dtype=dtype, width=16, height=16, cfg_type=cfg_type)
    peer.prepare(PROMPT, NEGATIVE, guidance_scale=G, delta=DELTA)
    assert [int(t) for t in peer.sub_timesteps] == timesteps
    drawn = NoiseSource(1, (4, 8, 8), 8).locked(2, len(timesteps))
    peer.init_noise = torch.cat([drawn.entry, *drawn.later]).to(dtype)
    if dtype == torch.float64:
        t = torch.tensor(timesteps, dtype=dtype).view(-1, 1, 1, 1)
        abar = torch.from_numpy(_their_schedule().alphas_cumprod)[timesteps].view(-1, 1, 1, 1)
        peer.alpha_prod_t_sqrt, peer.beta_prod_t_sqrt = abar.sqrt(), (1 - abar).sqrt()
        peer.c_skip = 0.25 / ((10 * t) ** 2 + 0.25)
        peer.c_out = 10 * t / ((10 * t) ** 2 + 0.25).sqrt()
    return peer


def _their_schedule() -> ScheduleConfig:
    return ScheduleConfig(alphas_cumprod=LCMScheduler().alphas_cumprod.double().numpy())
