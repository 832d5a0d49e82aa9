"""Sliced networks against the plain ones: the codec bit for bit, normalised blocks within float rounding."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError
from pipelines.core.types import Frame
from pipelines.files import hub
from pipelines.files.loader_options import LoaderOptions
from pipelines.image import slicing as slicing_module
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.model import Condition
from pipelines.image.slicing import (
    RowByRow,
    SlicedEnd,
    SlicedResnet,
    SlicedTokens,
    SlicedUpsampling,
    bands,
    group_affine,
    slice_autoencoder,
    slice_modules,
)
from pipelines.kinds.base import LoadContext
from pipelines.kinds.image import for_slices
from pipelines.load import load_engine

MODEL = hub.BUNDLED_FOLDER / "mini-image"


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that small pictures take several slices."""
    monkeypatch.setattr(slicing_module, "SLICE_BYTES", 2**16)


def test_bands_cover_everything_once() -> None:
    assert list(bands(10, 2**15)) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert list(bands(3, 2**20)) == [(0, 1), (1, 2), (2, 3)]
    assert list(bands(5, 1)) == [(0, 5)]
    assert [stop for _, stop in bands(7, 2**15)] == [1, 3, 5, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_tiny_codec_is_bit_equal(dtype: torch.dtype) -> None:
    plain = AutoencoderTiny.from_pretrained(MODEL / "vae", torch_dtype=dtype).to(memory_format=torch.channels_last)
    sliced = copy.deepcopy(plain)
    slice_autoencoder(sliced)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, 152, 120, generator=generator) * 2 - 1).to(dtype)
    latents = torch.randn(2, 4, 38, 30, generator=generator).to(dtype)
    assert torch.equal(sliced.encode(images, return_dict=False)[0], plain.encode(images, return_dict=False)[0])
    assert torch.equal(sliced.decode(latents, return_dict=False)[0], plain.decode(latents, return_dict=False)[0])


@torch.no_grad()
def test_group_affine_is_group_norm() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 12, eps=1e-3).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64) * 3 + 1
    scale, shift = group_affine(x, norm)
    groups = x.view(2, 3, 4, 5, 7)
    mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
    plain = ((groups - mean) / (variance + 1e-3).sqrt()).view_as(x) * norm.weight.view(1, -1, 1, 1)
    torch.testing.assert_close(scale * x + shift, plain + norm.bias.view(1, -1, 1, 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scale * x + shift, norm(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("time", ["default", "scale_shift"])
@pytest.mark.parametrize("widths", [(16, 16), (16, 24)])
@torch.no_grad()
def test_a_block_equals_the_plain_one(time: str, widths: tuple[int, int]) -> None:
    torch.manual_seed(1)
    kinds = {"groups": 4, "temb_channels": 8, "time_embedding_norm": time, "output_scale_factor": 1.5}
    block = ResnetBlock2D(in_channels=widths[0], out_channels=widths[1], **kinds).double().eval()
    assert SlicedResnet.can_slice(block)
    x, temb = torch.randn(2, 16, 33, 20, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(SlicedResnet(block)(x, temb), block(x, temb), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_tokens_equal_the_plain_network() -> None:
    network = FeedForward(16, activation_fn="geglu").eval()
    x = torch.randn(2, 301, 16)
    torch.testing.assert_close(SlicedTokens(network, 128)(x), network(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_bundled_unet_row_by_row() -> None:
    """1e-4 of a prediction of about unit size: other orders of summation in GroupNorm's statistics."""
    plain = UNet2DConditionModel.from_pretrained(MODEL / "unet").eval()
    sliced = copy.deepcopy(plain)
    slice_modules(sliced)
    kinds = [type(module) for module in sliced.modules()]
    assert {SlicedResnet, SlicedEnd, SlicedUpsampling, SlicedTokens} <= set(kinds)
    generator = torch.Generator().manual_seed(0)
    latents, steps = torch.randn(2, 4, 24, 32, generator=generator), torch.tensor([900, 100])
    embeds = torch.randn(2, 16, plain.config.cross_attention_dim, generator=generator)

    def denoiser(unet: nn.Module) -> object:
        return lambda x, t, condition: unet(x, t, encoder_hidden_states=condition.embeds, return_dict=False)[0]

    condition = Condition(embeds=embeds, pooled=None, time_ids=None, row=steps, step=steps)
    expected = denoiser(plain)(latents, steps, condition)
    result = RowByRow(denoiser(sliced))(latents, steps, condition)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_published_kind_of_autoencoder() -> None:
    torch.manual_seed(2)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    plain = AutoencoderKL(block_out_channels=(16, 32), norm_num_groups=4, **kinds).double().eval()
    sliced = copy.deepcopy(plain)
    slice_autoencoder(sliced)
    latents = torch.randn(2, 4, 20, 24, dtype=torch.float64)
    result, expected = (vae.decode(latents, return_dict=False)[0] for vae in (sliced, plain))
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_a_sliced_render_is_the_plain_one_within_a_level() -> None:
    plain, sliced = (rendered(slicing) for slicing in ("off", "on"))
    assert np.abs(sliced.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("slicing", ["off", "auto"])
def test_nothing_is_sliced_unless_it_has_to_be(slicing: str) -> None:
    runtime = load_image_model("mini-image", LoadOptions(device="cpu", dtype="float32", slicing=slicing)).runtime
    kinds = {type(module).__module__ for part in (runtime.denoiser, runtime.codec) for module in part.modules()}
    assert slicing_module.__name__ not in kinds


def test_what_cannot_be_sliced_says_so() -> None:
    told: list[str] = []
    context, compiled = LoadContext(notice=told.append), BACKENDS["openvino"]
    assert for_slices(compiled, LoaderOptions(), context).name == "eager"
    assert "openvino cannot run slice by slice" in told[0]
    assert for_slices(BACKENDS["cuda-graph"], LoaderOptions(backend="cuda-graph"), context).name == "cuda-graph"
    with pytest.raises(ModelError, match="openvino cannot run slice by slice"):
        for_slices(compiled, LoaderOptions(backend="openvino"), context)
    with pytest.raises(ModelError, match="has no slicing"):
        load_engine("mini-video", device="cpu", slicing="on")
    with pytest.raises(InputError, match="slicing cannot be"):
        LoaderOptions(slicing="maybe")
    assert LoaderOptions().slicing == "off"


def rendered(slicing: str) -> np.ndarray:
    choices = {"width": 64, "height": 64, "frames_per_slot": 2, "backend": "eager", "slicing": slicing}
    engine = load_engine("mini-image", device="cpu", dtype="float32", prepare=False, **choices)
    stream = engine.open(Control.of({"steps": 1, "strength": 0.5, "seed": 1}))
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    for seq in range(2):
        stream.push(Frame(image=image, pts=seq, time_base=Fraction(1, 30), seq=seq))
    frames: list[Frame] = []
    while len(frames) < 2:
        engine.tick()
        frames += stream.pull()
    engine.close()
    return np.stack([frame.image for frame in frames])
