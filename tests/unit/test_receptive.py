"""Receptive fields: analytic and empirical measures agree, and masks are dilated by them as spelled out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn

from cache.features.perturbation import Perturbation, empirical_field
from cache.features.reach import UnknownOperationError, analytic_field
from cache.features.receptive import ReceptiveField, Unbounded, affected
from pipelines.core.errors import ModelError
from pipelines.files import hub
from pipelines.image.codec_tiles import codec_fields

FEW = Perturbation(inputs=1, dtype=torch.float32)


def plain_affected(changed: np.ndarray, field: ReceptiveField) -> np.ndarray:
    """Look at every output, and every input that it depends on, one by one."""
    height, width = changed.shape
    result = np.zeros((height // field.inputs * field.outputs, width // field.inputs * field.outputs), dtype=bool)
    for row, column in np.ndindex(*result.shape):
        spans = []
        for place, length in ((row, height), (column, width)):
            cell, phase = divmod(place, field.outputs)
            start = cell * field.inputs
            spans.append(range(max(0, start + field.first[phase]), min(length, start + field.last[phase] + 1)))
        result[row, column] = any(changed[y, x] for y in spans[0] for x in spans[1])
    return result


@pytest.mark.parametrize(
    ("module", "inputs", "first", "last"),
    [
        (nn.Conv2d(3, 2, 3, padding=1), 1, (-1,), (1,)),
        (nn.Conv2d(3, 2, 3, padding=2, dilation=2), 1, (-2,), (2,)),
        (nn.Conv2d(3, 2, 3, stride=2, padding=1), 2, (-1,), (1,)),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)), 1, (-1, -1), (1, 1)),
        (nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 3, padding=1)), 1, (-1, 0), (0, 1)),
        (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2)), 1, None, None),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 2, 1)), 2, (0,), (1,)),
        (nn.Sequential(nn.ZeroPad2d((1, 1, 1, 1)), nn.Conv2d(3, 2, 3)), 1, (-1,), (1,)),
    ],
)
def test_fields_of_small_modules(module: nn.Module, inputs: int, first: object, last: object) -> None:
    field = analytic_field(module, 3, size=32)
    assert isinstance(field, ReceptiveField)
    assert field.inputs == inputs
    if first is not None:
        assert (field.first, field.last) == (first, last)
    period = inputs if first is not None else 2
    assert empirical_field(module.double(), 3, size=32, cell=period, how=Perturbation(inputs=3)) == field


def test_the_bundled_codec_agrees_with_perturbation() -> None:
    vae = AutoencoderTiny.from_pretrained(hub.BUNDLED_FOLDER / "mini-image" / "vae")
    fields = codec_fields(vae)
    assert (fields.encoder.before, fields.encoder.after, fields.encoder.margin_cells) == (56, 53, 14)
    assert (fields.decoder.before, fields.decoder.after, fields.decoder.margin_cells) == (17, 17, 17)
    assert empirical_field(vae.encoder, 3, size=128, cell=4, how=FEW) == fields.encoder
    assert empirical_field(vae.decoder, 4, size=40, cell=1, how=FEW) == fields.decoder


@pytest.mark.soak
def test_the_published_shape_agrees_with_perturbation() -> None:
    torch.manual_seed(0)
    vae = AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4).double()
    fields = codec_fields(vae)
    for name, parameter in vae.named_parameters():  # positive weights: no ReLU stops the influence
        with torch.no_grad():
            parameter.abs_() if name.endswith("weight") else parameter.zero_()
    how = Perturbation(inputs=1, jump=1e4)
    assert empirical_field(vae.encoder, 3, size=320, cell=8, how=how) == fields.encoder
    assert empirical_field(vae.decoder, 4, size=48, cell=1, how=how) == fields.decoder


def test_what_has_no_bound_says_so() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4))
    assert analytic_field(module, 3) == Unbounded(because="native_group_norm")
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    with pytest.raises(ModelError, match="native_group_norm"):
        codec_fields(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **blocks))

    class Attends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert isinstance(analytic_field(Attends(), 3, size=8), Unbounded)
    with pytest.raises(UnknownOperationError, match="flattened"):
        analytic_field(nn.Flatten(2), 3, size=8)
    with pytest.raises(UnknownOperationError):
        analytic_field(nn.ConvTranspose2d(3, 3, 2, stride=2), 3)


@pytest.mark.parametrize(
    "field",
    [
        ReceptiveField(inputs=4, outputs=1, first=(-6,), last=(7,)),
        ReceptiveField(inputs=1, outputs=2, first=(-2, -1), last=(1, 2)),
        ReceptiveField(inputs=1, outputs=1, first=(0,), last=(0,)),
    ],
)
def test_affected_is_the_plain_dilation(field: ReceptiveField) -> None:
    generator = np.random.default_rng(1)
    for share in (0.0, 0.01, 0.05, 1.0):
        changed = generator.random((16, 24)) < share
        assert np.array_equal(affected(changed, field), plain_affected(changed, field))
