"""LoRA: compared with diffusers' own loader, live scale without drift, published key names of full-size networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import nn

from pipelines.core.errors import InputError, ModelLayoutError, UnsafeWeightsError
from pipelines.files.lora_files import LoraFile
from pipelines.files.lora_keys import read_lora
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.loading.lora import MergedLora
from tests.fakes.tiny_models import tiny_sd15, tiny_sdxl_turbo

RANK = 2
LCM_LORA_TARGETS = (  # as in diffusers' LCM-LoRA training script
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
SD15_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("models") / "sd15")


def unet_of(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that kohya's trainer adapts: all linear and convolution layers."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def kohya(network: nn.Module, prefix: str, *, alpha: float = 1.0, only: str = "") -> dict[str, torch.Tensor]:
    """Return a LoRA of a network by kohya's names, with convolutions as kohya stores them."""
    state = {}
    generator = torch.Generator().manual_seed(9)
    for name, module in layers(network).items():
        if only not in name:
            continue
        key = f"{prefix}_{name.replace('.', '_')}"
        rows, columns, *kernel = module.weight.shape
        state[f"{key}.lora_down.weight"] = torch.randn(RANK, columns, *kernel, generator=generator) * 0.1
        state[f"{key}.lora_up.weight"] = torch.randn(rows, RANK, *[1 for _ in kernel], generator=generator) * 0.1
        state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: module.weight.detach().clone() for name, module in layers(network).items()}


def largest_gap(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_kohya_file_merges_as_diffusers_fuses_it(sd15: Path, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(kohya(unet_of(sd15), "lora_unet", alpha=4.0, only="attentions"), file)
    stock = StableDiffusionPipeline.from_pretrained(sd15, safety_checker=None)
    plain = weights(stock.unet)
    stock.load_lora_weights(file)
    stock.fuse_lora(lora_scale=0.7)
    stock.unload_lora_weights()
    unet = unet_of(sd15)
    lora = MergedLora(unet, (), [(file, 1.0)])
    lora.set_scale(0.7)
    gap = largest_gap(weights(unet), weights(stock.unet))
    print(f"merged weights against diffusers' fused ones: max {gap:.2e}")  # noqa: T201
    assert gap <= 1e-6
    assert largest_gap(weights(unet), plain) > 1e-2


def test_diffusers_naming_and_its_settings(sd15: Path, tmp_path: Path) -> None:
    """MODULE.lora_A.weight keys with alpha in the file's header, as diffusers writes them."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = torch.randn(RANK, 32), torch.randn(32, RANK)
    state = {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    settings = {"unet.lora_alpha": 8, "unet.r": RANK, "unet.alpha_pattern": {}}
    plain_file, set_file = tmp_path / "plain.safetensors", tmp_path / "set.safetensors"
    save_file(state, plain_file)
    save_file(state, set_file, metadata={"lora_adapter_metadata": json.dumps(settings)})
    for file, factor in ((plain_file, 1.0), (set_file, 8 / RANK)):
        unet = unet_of(sd15)
        before = weights(unet)
        MergedLora(unet, (), [(file, 1.0)])
        after = weights(unet)
        torch.testing.assert_close(after[name], before[name] + factor * (b @ a), atol=1e-5, rtol=1e-5)
        assert {key for key in after if not torch.equal(after[key], before[key])} == {name}


def test_several_files_add_up_with_their_own_weights(sd15: Path, tmp_path: Path) -> None:
    files = []
    for index, only in enumerate(("attn1.to_q", "attn1")):
        file = tmp_path / f"{index}.safetensors"
        save_file(kohya(unet_of(sd15), "lora_unet", only=only), file)
        files.append(file)
    unet = unet_of(sd15)
    base = weights(unet)
    MergedLora(unet, (), [(files[0], 0.5), (files[1], -1.5)])
    together = weights(unet)
    deltas = []
    for file in files:
        alone = unet_of(sd15)
        MergedLora(alone, (), [(file, 1.0)])
        deltas.append({name: value - base[name] for name, value in weights(alone).items()})
    expected = {name: base[name] + 0.5 * deltas[0][name] - 1.5 * deltas[1][name] for name in base}
    assert largest_gap(together, expected) <= 1e-6


def test_scale_moves_in_the_same_storage_and_never_drifts(sd15: Path, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file(kohya(unet_of(sd15), "lora_unet"), file)
    unet = unet_of(sd15).to(memory_format=torch.channels_last)
    base = weights(unet)
    places = {name: module.weight.data_ptr() for name, module in layers(unet).items()}
    lora = MergedLora(unet, (), [(file, 1.0)])
    assert len(lora._layers) == len(layers(unet))
    at_one = weights(unet)
    for step in range(200):
        lora.set_scale((step % 40) / 20 - 1)
    lora.set_scale(1.0)
    assert largest_gap(weights(unet), at_one) == 0
    lora.set_scale(0.0)
    assert largest_gap(weights(unet), base) == 0
    assert {name: module.weight.data_ptr() for name, module in layers(unet).items()} == places


def test_text_encoders_are_merged_as_diffusers_fuses_them(sd15: Path, tmp_path: Path) -> None:
    stock = StableDiffusionPipeline.from_pretrained(sd15, safety_checker=None)
    text = kohya(stock.text_encoder, "lora_te_text_model", alpha=1.0, only="layers")
    file = tmp_path / "style.safetensors"
    save_file({**kohya(stock.unet, "lora_unet", only="attn2"), **text}, file)
    model = load_image_model(str(sd15), LoadOptions(device="cpu", dtype="float32", loras=(LoraFile(source=str(file)),)))
    before = stock.encode_prompt("a cat", "cpu", 1, False)[0][0].detach()
    stock.load_lora_weights(file)
    stock.fuse_lora(components=["unet", "text_encoder"])
    expected = stock.encode_prompt("a cat", "cpu", 1, False)[0][0].detach()
    embeds = model.prompts.encode("a cat").embeds
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)
    assert model.lora is not None
    model.lora.set_scale(0.0)
    assert torch.equal(model.prompts.encode("a cat").embeds, embeds)  # the live scale is the denoiser's


def test_both_text_encoders_of_sdxl_take_their_keys(tmp_path: Path) -> None:
    folder = tiny_sdxl_turbo(tmp_path / "sdxl")
    plain = load_image_model(str(folder), LoadOptions(device="cpu", dtype="float32"))
    state = {}
    for prefix, width in (("lora_te1", 32), ("lora_te2", 48)):
        key = f"{prefix}_text_model_encoder_layers_0_self_attn_v_proj"
        state[f"{key}.lora_down.weight"] = torch.randn(RANK, width)
        state[f"{key}.lora_up.weight"] = torch.randn(width, RANK)
        state[f"{key}.alpha"] = torch.tensor(2.0)
    file = tmp_path / "style.safetensors"
    save_file(state, file)
    options = LoadOptions(device="cpu", dtype="float32", loras=(LoraFile(source=str(file)),))
    changed = load_image_model(str(folder), options)
    gaps = (changed.prompts.encode("a cat").embeds - plain.prompts.encode("a cat").embeds).abs().amax(dim=0)
    assert gaps[:32].max() > 1e-4
    assert gaps[32:].max() > 1e-4


@pytest.mark.parametrize(("config", "count"), [(SD15_UNET, 278), (SDXL_UNET, 788)], ids=["sd15", "sdxl"])
def test_every_layer_of_the_published_networks_is_found(config: dict[str, Any], count: int, tmp_path: Path) -> None:
    """The layers that LCM-LoRA adapts: each kohya name must map back to its layer."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    touched = {name for name in layers(unet) if name.endswith(LCM_LORA_TARGETS)}
    state = {}
    for name in touched:
        key = f"lora_unet_{name.replace('.', '_')}"
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = torch.zeros(1, 1), torch.zeros(1, 1)
        state[f"{key}.alpha"] = torch.tensor(1.0)
    file = tmp_path / "lcm.safetensors"
    save_file(state, file)
    found = read_lora(file, unet.config)
    assert set(found) == {"unet"}
    assert set(found["unet"]) == touched
    assert len(found["unet"]) == count


def test_files_for_other_models_are_refused(sd15: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    down, up = torch.zeros(RANK, 5), torch.zeros(32, RANK)
    save_file(
        {"unet.down_blocks.7.attn.to_q.lora_A.weight": down, "unet.down_blocks.7.attn.to_q.lora_B.weight": up}, file
    )
    with pytest.raises(
        ModelLayoutError, match=r"layers that this model does not have: unet\.down_blocks\.7\.attn\.to_q"
    ):
        MergedLora(unet_of(sd15), (), [(file, 1.0)])
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, file)
    with pytest.raises(ModelLayoutError, match=r"\(32, 2\) and \(2, 5\)"):
        MergedLora(unet_of(sd15), (), [(file, 1.0)])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.conv_in.lora_A.weight", "match no layer: unet.conv_in.lora_A.weight"),
        ("lora_unet_conv_in.hada_w1_a", "not a plain LoRA"),
        ("transformer.x.lora_A.weight", "match no layer"),
        ("lora_unet_conv_in.strange", "unknown naming scheme"),
    ],
)
def test_unknown_keys_are_named(sd15: Path, tmp_path: Path, key: str, message: str) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({key: torch.zeros(2, 2)}, file)
    with pytest.raises(ModelLayoutError, match=message):
        read_lora(file, unet_of(sd15).config)


def test_a_damaged_or_pickled_file_is_refused(sd15: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes(b"\x00" * 20)
    with pytest.raises(ModelLayoutError, match="not a readable safetensors file"):
        read_lora(damaged, unet_of(sd15).config)
    pickled = tmp_path / "style.pt"
    torch.save({}, pickled)
    with pytest.raises(UnsafeWeightsError, match=r"style\.pt is a pickle"):
        load_image_model(str(sd15), LoadOptions(device="cpu", loras=(LoraFile(source=str(pickled)),)))


@pytest.mark.parametrize("weight", [float("nan"), 11.0])
def test_weights_of_files_have_a_range(weight: float) -> None:
    with pytest.raises(InputError, match="from -10 to 10"):
        LoraFile(source="x.safetensors", weight=weight)
