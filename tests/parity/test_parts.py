"""The parts of the bundled models, exported, equal what their engines call, to the bit."""

from __future__ import annotations

import pytest
import torch

from pipelines.core.parts import Part
from pipelines.image.engine import ImageEngine
from pipelines.image.model import Condition
from pipelines.image.parts import decode_part, denoise_inputs, denoise_part, encode_part
from pipelines.load import load_engine
from pipelines.video.engine import VideoEngine
from pipelines.video.parts import pass_part


def exported(part: Part) -> tuple[torch.Tensor, ...]:
    """Export a part, run the exported program on its inputs, and check that it reads the model's own parameters."""
    program = torch.export.export(part.module, tuple(part.inputs.values()), strict=False)
    assert not program.constants  # nothing of the model was copied into the program
    return program.module()(*part.inputs.values())


@pytest.fixture(scope="module")
def image() -> ImageEngine:
    engine = load_engine("mini-image", device="cpu", dtype="float32", backend="eager", notice=lambda text: None)
    assert isinstance(engine, ImageEngine)
    return engine


@torch.no_grad()
def test_the_parts_of_an_image_model(image: ImageEngine) -> None:
    generator, core = torch.Generator().manual_seed(1), image.core
    latents = torch.randn((2, *core.latent_shape), generator=generator)
    timestep = torch.tensor([499, 259])
    embeds = torch.stack([core.texts.encode(text).embeds for text in ("a cat", "a dog")])
    condition = Condition(embeds=embeds, pooled=None, time_ids=None, row=timestep, step=timestep)
    denoise = denoise_part(core.denoiser, denoise_inputs(latents, timestep, condition))  # type: ignore[arg-type]
    torch.testing.assert_close(exported(denoise)[0], core.denoiser(latents, timestep, condition), rtol=0, atol=0)
    images = torch.rand((1, 3, core.height, core.width), generator=generator) * 2 - 1
    encode = encode_part(core.codec, images)  # type: ignore[arg-type]
    torch.testing.assert_close(exported(encode)[0], core.codec.encode(images), rtol=0, atol=0)
    decode = decode_part(core.codec, latents)  # type: ignore[arg-type]
    torch.testing.assert_close(exported(decode)[0], core.codec.decode(latents), rtol=0, atol=0)


@torch.no_grad()
def test_the_pass_of_a_video_model() -> None:
    engine = load_engine("mini-video", device="cpu", dtype="float32", backend="eager", notice=lambda text: None)
    assert isinstance(engine, VideoEngine)
    transformer, generator = engine.core.model.transformer, torch.Generator().manual_seed(1)
    rows, frames, past = 2, 3, 6
    channels, height, width = engine.core.latent_shape
    grid = transformer.grid(height, width)
    tokens = grid[0] * grid[1]

    def keys(count: int) -> torch.Tensor:
        size = (transformer.layers, rows, count, transformer.heads, transformer.head_dim)
        return torch.randn(size, generator=generator)

    cos, sin = transformer.full_window(frames, grid, torch.arange(past, past + frames)).query_rotation
    inputs = {
        "latents": torch.randn((rows, channels, frames, height, width), generator=generator),
        "timesteps": torch.tensor([[900.0], [300.0]]).expand(rows, frames).contiguous(),
        "text_keys": keys(transformer.config.text_len),
        "text_values": keys(transformer.config.text_len),
        "past_keys": keys(past * tokens),
        "past_values": keys(past * tokens),
        "cos": cos.expand(rows, *cos.shape).contiguous(),
        "sin": sin.expand(rows, *sin.shape).contiguous(),
        "actions": torch.rand((rows, frames, 5), generator=generator),
    }
    part = pass_part(transformer, inputs)
    for got, wanted in zip(exported(part), part.module(*inputs.values()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
