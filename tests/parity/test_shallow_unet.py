"""A UNet cut at any branch equals the whole one where the deep feature is fresh, to the bit; so do its exported
parts."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.core.parts import Part
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.loading.text_projection import UNetTextProjection
from pipelines.image.model import Condition
from pipelines.image.parts import denoise_inputs
from pipelines.image.shallow_unet import BranchedDenoiser, BranchedUNet, branches, full_part, obstacle, shallow_part
from tests.fakes.image_model import stable_diffusion_schedule


@functools.cache
def unet(layers: int = 2, **options: Any) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 24, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=layers,
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=8,
            **options,
        )
    return network.eval().requires_grad_(False)


def inputs(size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, *size, generator=generator),
        torch.tensor([499, 20]),
        torch.randn(2, 3, 16, generator=generator),
    )


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (10, 6), (5, 7)])
@pytest.mark.parametrize("layers", [1, 2])
def test_both_forms_equal_the_network_at_every_branch(layers: int, size: tuple[int, int]) -> None:
    network, (x, t, text) = unet(layers), inputs(size)
    expected = network(x, t, encoder_hidden_states=text, return_dict=False)[0]
    assert list(branches(network)) == list(range(1, 3 * (layers + 1)))
    for branch in branches(network):
        cut = BranchedUNet(network, branch)
        out, deep, top = cut.full(x, t, encoder_hidden_states=text)
        assert torch.equal(out, expected)
        assert deep.shape[1:] == cut.deep_shape(*size)
        assert top.shape[1:] == cut.top_shape(*size)
        again, same = cut.shallow(x, t, deep, encoder_hidden_states=text)
        assert torch.equal(again, expected)
        assert torch.equal(same, top)
        moved, _ = cut.shallow(x, t, deep + 1, encoder_hidden_states=text)
        assert not torch.allclose(moved, expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"mid_block_type": None}, {"time_embedding_act_fn": "silu"}, {"encoder_hid_dim": 16}]
)
def test_other_networks(options: dict[str, Any]) -> None:
    network, (x, t, text) = unet(1, **options), inputs()
    out, deep, _ = (cut := BranchedUNet(network, 2)).full(x, t, encoder_hidden_states=text)
    assert torch.equal(out, network(x, t, encoder_hidden_states=text, return_dict=False)[0])
    assert torch.equal(cut.shallow(x, t, deep, encoder_hidden_states=text)[0], out)


@torch.no_grad()
def test_projected_text_and_pooled_prompts() -> None:
    network, (x, t, text) = unet(1, addition_embed_type="text", addition_embed_type_num_heads=2), inputs()
    projection = UNetTextProjection(network, torch.float32)
    expected = network(x, t, encoder_hidden_states=text, return_dict=False)[0]
    out, deep, _ = (cut := BranchedUNet(projection.unet, 2)).full(x, t, encoder_hidden_states=projection.project(text))
    torch.testing.assert_close(out, expected)
    assert torch.equal(cut.shallow(x, t, deep, encoder_hidden_states=projection.project(text))[0], out)


def test_no_parameters_are_copied_and_wrong_branches_refused() -> None:
    network = unet(1)
    owned = {id(p) for p in network.parameters()}
    assert {id(p) for p in BranchedUNet(network, 1).parameters()} == owned
    for branch in (0, 6):
        with pytest.raises(ValueError, match="branches 1 to 5"):
            BranchedUNet(network, branch)


@pytest.mark.parametrize(
    ("options", "reason"), [({"num_class_embeds": 3}, "class labels"), ({"center_input_sample": True}, "centres")]
)
def test_networks_that_cannot_be_cut(options: dict[str, Any], reason: str) -> None:
    assert obstacle(unet(1)) is None
    found = obstacle(unet(1, **options))
    assert found is not None
    assert reason in found


def exported(part: Part) -> tuple[torch.Tensor, ...]:
    program = torch.export.export(part.module, tuple(part.inputs.values()), strict=False)
    assert not program.constants
    return program.module()(*part.inputs.values())


@torch.no_grad()
def test_the_parts_can_be_exported() -> None:
    network, (x, t, text) = unet(1), inputs()
    plain = UNetDenoiser(
        network,
        schedule=stable_diffusion_schedule(),
        prediction_type="v_prediction",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    cut = BranchedDenoiser(plain, 2)
    condition = Condition(embeds=text, pooled=None, time_ids=None, row=t, step=t)
    expected, named = plain(x, t, condition), denoise_inputs(x, t, condition)
    out, deep, _ = exported(full_part(cut, named))
    assert torch.equal(out, expected)
    assert torch.equal(deep, cut.full(x, t, condition)[1])
    assert torch.equal(exported(shallow_part(cut, named, deep))[0], expected)
