"""Keys and values of prompts that are computed once: frames equal those of the plain path up to rounding.

The projected text of one prompt is computed alone, in the plain path together with those of the batch: products of
other shapes round differently. Hence a tolerance: 1e-5 of the latents' size in float32 (a few units in the last place,
amplified by the network), 3e-2 in bfloat16, whose unit is 8e-3.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.backends.pytorch import PyTorchBackend
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import Conditioner, EngineParts, Inputs, PassView, StreamConditioner, StreamPlace
from pipelines.core.controls import Control, Controls
from pipelines.core.execution import EagerExecutor
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.loading.text_projection import UNetTextProjection, obstacle
from pipelines.image.model import Condition, ImageModel, ImageNetworks, ImageRuntime
from pipelines.image.parts import denoise_inputs, denoise_part
from pipelines.image.prompt_keys import PromptKeys
from pipelines.image.runtime import plain_runtime, projecting_runtime
from tests.fakes.image_model import frames, tiny_unet

TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


@functools.cache
def bundled(dtype: str) -> tuple[ImageModel, ImageNetworks]:
    kept: list[ImageNetworks] = []

    def keep(networks: ImageNetworks) -> ImageRuntime:
        kept.append(networks)
        return plain_runtime(networks)

    model = load_image_model("mini-image", LoadOptions(device="cpu", dtype=dtype), keep)
    return model, kept[0]


def texts(model: ImageModel, *prompts: str) -> torch.Tensor:
    return torch.stack([model.prompts.encode(prompt).embeds for prompt in prompts])


def condition(embeds: torch.Tensor) -> Condition:
    rows = torch.arange(len(embeds))
    return Condition(embeds=embeds, pooled=None, time_ids=None, row=rows, step=rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_denoiser_of_the_bundled_model(dtype: str) -> None:
    model, networks = bundled(dtype)
    plain, ours = plain_runtime(networks), projecting_runtime(networks)
    assert ours.projection is not None
    latents = torch.randn((3, 4, 24, 24), generator=torch.Generator().manual_seed(0))
    timestep, embeds = torch.tensor([499, 259, 39]), texts(model, "a cat", "a robot on the beach", "")
    wanted = plain.denoiser(latents, timestep, condition(embeds))
    together = ours.denoiser(latents, timestep, condition(ours.projection.project(embeds)))
    assert torch.equal(wanted, together), "products of the same shapes give the same bits"
    alone = torch.cat([ours.projection.project(text[None]) for text in embeds])
    got = ours.denoiser(latents, timestep, condition(alone))
    error = float((got - wanted).abs().max() / wanted.abs().max())
    assert error <= TOLERANCE[dtype]
    other = ours.denoiser(latents, timestep, condition(alone.flip(0)))
    assert float((other - wanted).abs().max() / wanted.abs().max()) > 3 * TOLERANCE[dtype], "the text matters"


def test_it_is_exported_with_the_models_own_parameters() -> None:
    model, networks = bundled("float32")
    ours = projecting_runtime(networks)
    assert ours.projection is not None
    latents, timestep = torch.randn(2, 4, 24, 24), torch.tensor([499, 259])
    given = condition(ours.projection.project(texts(model, "a cat", "a dog")))
    assert isinstance(ours.denoiser, torch.nn.Module)
    part = denoise_part(ours.denoiser, denoise_inputs(latents, timestep, given))
    program = torch.export.export(part.module, tuple(part.inputs.values()), strict=False)
    assert not program.constants
    with torch.no_grad():
        got, wanted = program.module()(*part.inputs.values())[0], ours.denoiser(latents, timestep, given)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    own = {id(parameter) for parameter in networks.unet.parameters()}
    assert {id(parameter) for parameter in part.module.parameters()} <= own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_without_added_text(dtype: torch.dtype) -> None:
    unet = tiny_unet(dtype)
    projection = UNetTextProjection(unet, dtype)
    x, text, t = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 3, 16, dtype=dtype), torch.tensor([500, 20])
    with torch.no_grad():
        wanted = unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
        got = projection.unet(x, t, encoder_hidden_states=projection.project(text), return_dict=False)[0]
        again = unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(again, wanted, rtol=0, atol=0)


def play(engine: ImageEngine, control: dict[str, Any], lora: list[float] | None = None) -> list[Frame]:
    """Blends, a glide, a cut, a negative prompt and a second stream, over 8 ticks."""
    changes: dict[int, dict[str, Any]] = {
        2: {"prompt": "a robot:2 | a dog", "transition_frames": 3},
        4: {"negative_prompt": "a cat", "guidance_scale": 1.8},
        5: {"prompt": "a ghost on the beach", "prompt_change": "cut", "transition_frames": 2},
    }
    with (
        engine.open(Control.of({"prompt": "a cat", **control})) as stream,
        engine.open(Control.of({"steps": 2})) as two,
    ):
        out: list[Frame] = []
        for tick, picture in enumerate(frames(8, side_px=engine.core.width)):
            stream.apply(Control.of(changes.get(tick, {})))
            for own in (stream, two):
                own.push(picture)
            engine.tick()
            out += [*stream.pull(), *two.pull()]
        return [*out, *stream.flush(), *two.flush()]


def psnr(one: list[Frame], two: list[Frame]) -> float:
    error = np.mean([(a.image.astype(float) - b.image.astype(float)) ** 2 for a, b in zip(one, two, strict=True)])
    return float(10 * np.log10(255.0**2 / max(error, 1e-12)))


@pytest.mark.parametrize("mode", ["full", "onetime"])
def test_streams_through_the_engine(mode: str) -> None:
    model, networks = bundled("float32")
    control = {"steps": 2, "guidance_mode": mode, "guidance_scale": 1.3}
    plain = play(ImageEngine(model, width=64, height=64), control)
    ours = play(ImageEngine(replace(model, runtime=projecting_runtime(networks)), width=64, height=64), control)
    quality = psnr(plain, ours)
    assert quality >= 60, "float32 pictures differ by single grey levels, where they round to another one"


def test_a_runtime_that_takes_over_projects_what_is_in_flight() -> None:
    model, networks = bundled("float32")

    def run(later: ImageRuntime) -> list[Frame]:
        engine = ImageEngine(model, width=64, height=64)
        with engine.open(Control.of({"prompt": "a cat", "steps": 4, "guidance_mode": "self"})) as stream:
            out: list[Frame] = []
            for tick, picture in enumerate(frames(6, side_px=64)):
                if tick == 3:
                    engine.replace_runtime(later)
                assert stream.push(picture)
                engine.tick()
                out += stream.pull()
            return out + stream.flush()

    assert psnr(run(plain_runtime(networks)), run(projecting_runtime(networks))) >= 60


def test_a_changed_lora_scale_is_projected_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for slots in flight, as in the plain path."""
    _, networks = bundled("float32")
    unet = networks.unet
    weight = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
    base = weight.detach().clone()

    class Scale:
        def set_scale(self, scale: float) -> None:
            with torch.no_grad():
                weight.copy_(base * scale)

    def run(runtime: ImageRuntime) -> list[Frame]:
        model = replace(bundled("float32")[0], runtime=runtime, lora=Scale())
        engine = ImageEngine(model, width=64, height=64)
        with engine.open(Control.of({"prompt": "a cat", "steps": 3})) as stream:
            for tick, picture in enumerate(frames(5, side_px=64)):
                if tick == 2:
                    stream.apply(Control.of({"lora_scale": -2.0}))
                assert stream.push(picture)
                engine.tick()
            return stream.flush()

    def run_from_scale_1(runtime: ImageRuntime) -> list[Frame]:
        Scale().set_scale(1.0)
        return run(runtime)

    try:
        plain = run_from_scale_1(plain_runtime(networks))
        assert psnr(plain, run_from_scale_1(projecting_runtime(networks))) >= 60
        monkeypatch.setattr(PromptKeys, "clear", lambda self: None)
        assert psnr(plain, run_from_scale_1(projecting_runtime(networks))) < 50
    finally:
        Scale().set_scale(1.0)


class Shifted(Conditioner):
    """Adds to the text in every pass."""

    name = "shifted"

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return StreamConditioner()

    def inputs(self, view: PassView) -> Inputs:
        return {"embeds": torch.ones(())}


def test_a_conditioner_that_changes_the_text_turns_it_off(caplog: pytest.LogCaptureFixture) -> None:
    model, networks = bundled("float32")

    def shifted(parts: EngineParts) -> Conditioner:
        return Shifted()

    class Recording:
        def __init__(self, runtime: ImageRuntime) -> None:
            self.denoiser, self.seen = runtime.denoiser, 0

        def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, given: Condition) -> torch.Tensor:
            self.seen = given.embeds.dim()
            return self.denoiser(latents, timestep, given)

    recording = Recording(plain_runtime(networks))
    runtime = replace(projecting_runtime(networks), denoiser=recording)
    with caplog.at_level(logging.INFO):
        engine = ImageEngine(
            replace(model, runtime=runtime), width=64, height=64, conditioners=(*CONDITIONERS, shifted)
        )
    assert "the conditioner shifted changes the text" in caplog.text
    assert engine.core.prompt_keys is None
    with engine.open() as stream:
        stream.generate()
        assert len(stream.flush()) == 1
    assert recording.seen == 3


def test_networks_that_need_more_say_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    _, networks = bundled("float32")
    assert obstacle(networks.unet) is None
    attention = networks.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    monkeypatch.setattr(attention, "norm_cross", torch.nn.LayerNorm(128))
    with caplog.at_level(logging.INFO):
        assert projecting_runtime(networks).projection is None
    assert "attn2 normalises its inputs" in caplog.text


def test_the_eager_backend_is_the_plain_path() -> None:
    """Recorded takes replay bit for bit."""
    _, networks = bundled("float32")
    eager = PyTorchBackend(name="eager", purpose="").image(networks)
    assert eager.projection is None
    assert eager.lanes == 1
    assert eager.make_executor is EagerExecutor
    assert eager.denoiser.unet is networks.unet  # type: ignore[attr-defined]
