"""Published checkpoints: the exact mapping of names, and the same results as diffusers on the same weights.

The states are built from the names in tests/fakes/published_checkpoints.py; the reference is diffusers' own conversion
and its WanTransformer3DModel. Tolerance 4e-5 in float32 rather than 2e-5: our time sinusoid is computed in float64, as
in the published networks, diffusers' in float32, which differs by up to 6e-5 at t = 1000.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from pipelines.files.checkpoints import Checkpoint, read_checkpoint
from pipelines.files.precision import Precision
from pipelines.video.loading import transformer as loading
from pipelines.video.loading.companions import load_original_encoder, load_stock_autoencoder
from pipelines.video.loading.families import FAMILIES, family_of_path
from pipelines.video.loading.lora_merge import read_adapter
from pipelines.video.loading.sizes import config_of
from pipelines.video.loading.transformer import load_transformer
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.text_cache import PlainText
from pipelines.video.wan.transformer import CausalWanTransformer
from tests.fakes.published_checkpoints import (
    PUBLISHED,
    TINY,
    WAN_1_3B,
    WAN_14B,
    Dims,
    Published,
    State,
    lora_state,
    prefixed,
    variants,
    wan_shapes,
    wan_state,
)
from tests.fakes.published_components import random_state, umt5_shapes, vae_shapes
from tests.fakes.tiny_video_model import TINY_TRANSFORMER
from tests.parity.conftest import Report

TOLERANCE = 4e-5
CPU = Precision(device=torch.device("cpu"), dtype=torch.float32, reason="test")
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
FAMILY_IDS = [published.family for published in PUBLISHED]


def reference(state: State) -> WanTransformer3DModel:
    """diffusers' transformer with diffusers' own conversion of a state by original names, strictly."""
    model = WanTransformer3DModel(**TINY_TRANSFORMER)
    model.load_state_dict(convert_wan_transformer_to_diffusers(dict(state)), strict=True)
    return model.eval().requires_grad_(False)


def differences(ours: CausalWanTransformer, stock: WanTransformer3DModel) -> torch.Tensor:
    """Return ours minus diffusers' on random latents and text, with a timestep per row and with one per frame."""
    random = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 16, 3, 4, 6, generator=random)
    text = torch.randn(2, 7, TINY.text, generator=random)
    rows = torch.tensor([1000.0, 625.0])
    frames = torch.tensor([[937.5, 833.33, 0.0], [250.0, 250.0, 1000.0]])
    plain = PlainText(ours, text)
    tokens = frames.repeat_interleave(6, dim=1)
    return torch.stack(
        [
            ours(latents, rows[:, None].expand(2, 3), plain) - stock(latents, rows, text).sample,
            ours(latents, frames, plain) - stock(latents, tokens, text).sample,
        ]
    )


def stock_names(state: Mapping[str, object]) -> dict[str, str]:
    """Original name -> diffusers' name, by diffusers' own conversion, which moves values and looks at none."""
    converted: dict[str, str] = convert_wan_transformer_to_diffusers({name: name for name in state})
    return {old: new for new, old in converted.items()}


@pytest.mark.parametrize("published", PUBLISHED, ids=FAMILY_IDS)
def test_each_published_file_loads_with_exact_lists_and_the_numbers_of_diffusers(
    published: Published, tmp_path: Path, report: Report
) -> None:
    states = variants()
    path = published.write(tmp_path / "files", states)
    family = family_of_path(path.relative_to(tmp_path / "files"))
    assert family is not None
    assert family.name == published.family
    checkpoint = read_checkpoint(path, family.containers)
    config = config_of(checkpoint.shapes, HEADS, str(path))
    ours, found = load_transformer(checkpoint, config, CPU)
    names = stock_names(wan_shapes())
    assert dict(found.mapped) == {published.name(old): new for old, new in names.items()}
    assert len(found.mapped) == 69
    assert checkpoint.container == published.container
    assert set(found.ignored) == set(published.ignored)
    assert (found.missing, found.unexpected, dict(found.mismatched)) == ((), (), {})
    largest = report(
        f"{published.family}: our transformer = diffusers'",
        [differences(ours, reference(states[published.weights]))],
    )
    assert largest < TOLERANCE


def test_diffusers_names_are_taken_as_they_are(report: Report) -> None:
    stock = reference(wan_state())
    state = stock.state_dict()
    checkpoint = Checkpoint(source=Path("transformer"), tensors=state)
    ours, found = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "transformer"), CPU)
    assert dict(found.mapped) == {name: name for name in state}
    assert (found.ignored, found.missing, found.unexpected) == ((), (), ())
    assert report("diffusers' names: our transformer = diffusers'", [differences(ours, stock)]) < TOLERANCE


@pytest.mark.parametrize(("dims", "heads", "count"), [(WAN_1_3B, 12, 825), (WAN_14B, 40, 1095)], ids=["1.3B", "14B"])
@pytest.mark.parametrize("wrap", ["plain", "model.", "model._fsdp_wrapped_module."])
def test_the_real_sizes_load_on_the_meta_device(
    dims: Dims, heads: int, count: int, wrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "free_memory_bytes", lambda device: 1 << 40)
    prefix = "" if wrap == "plain" else wrap
    shapes = wan_shapes(dims)
    tensors = {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    checkpoint = Checkpoint(source=Path("published"), tensors=tensors)
    config = config_of(checkpoint.shapes, {}, "published")
    assert config == WanConfig(
        num_attention_heads=heads, ffn_dim=dims.ffn, num_layers=dims.layers, attention_head_dim=128
    )
    meta = Precision(device=torch.device("meta"), dtype=torch.bfloat16, reason="test")
    ours, found = load_transformer(checkpoint, config, meta)
    assert len(found.mapped) == count
    assert dict(found.mapped) == {prefix + old: new for old, new in stock_names(shapes).items()}
    assert (found.missing, found.unexpected, dict(found.mismatched)) == ((), (), {})
    with torch.device("meta"):
        stock = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=dims.ffn, num_layers=dims.layers)
    expected = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == expected


def test_norms_change_places() -> None:
    """The original norm3 (cross-attention, with weights) is diffusers' norm2; swapping them is an error."""
    checkpoint = Checkpoint(source=Path("x"), tensors=wan_state())
    found = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "x"), CPU)[1]
    assert found.mapped["blocks.1.norm3.weight"] == "blocks.1.norm2.weight"
    assert not any("norm3" in target for target in found.mapped.values())


def test_formats_are_those_that_diffusers_keeps() -> None:
    checkpoint = Checkpoint(source=Path("x"), tensors=wan_state())
    half = Precision(device=torch.device("cpu"), dtype=torch.bfloat16, reason="test")
    ours, _ = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "x"), half)
    kept = {name for name, tensor in ours.state_dict().items() if tensor.dtype is torch.float32}
    assert kept == {
        "scale_shift_table",
        *(f"condition_embedder.time_embedder.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")),
        *(f"blocks.{i}.scale_shift_table" for i in range(2)),
        *(f"blocks.{i}.norm2.{part}" for i in range(2) for part in ("weight", "bias")),
    }


def test_the_files_own_tensors_stay_as_they_are() -> None:
    state = wan_state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    checkpoint = Checkpoint(source=Path("x"), tensors=state)
    ours, _ = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "x"), CPU)
    for parameter in ours.parameters():
        parameter.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize(
    ("prefix", "container"), [("base_model.model.", "generator_lora"), ("model.", ""), ("diffusion_model.", "")]
)
def test_longlive_is_its_base_plus_b_a(prefix: str, container: str, tmp_path: Path, report: Report) -> None:
    """alpha / rank is 256 / 256 in the published file: W0 + B A, every linear layer of every block, nothing else."""
    base, lora = wan_state(), lora_state(rank=4, prefix=prefix)
    file = tmp_path / "lora.pt"
    torch.save({container: lora, "critic_lora": {"x": torch.zeros(1)}} if container else lora, file)
    expected = dict(base)
    for name in base:
        a = lora.get(f"{prefix}{name.removesuffix('.weight')}.lora_A.weight")
        if a is not None:
            b = lora[f"{prefix}{name.removesuffix('.weight')}.lora_B.weight"]
            expected[name] = (base[name].double() + b.double() @ a.double()).float()
    changed = [name for name in base if not torch.equal(base[name], expected[name])]
    assert len(changed) == 2 * 10  # q, k, v, o twice and two layers of the MLP, in each of two blocks
    adapter = read_adapter(file, alpha=4.0)
    assert len(adapter.factors) == 20
    checkpoint = Checkpoint(source=Path("x"), tensors=prefixed(base))
    ours, _ = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "x"), CPU, [adapter])
    state = ours.state_dict()
    names = stock_names(base)
    merged = torch.cat([(state[names[name]] - expected[name]).flatten() for name in base])
    assert report(f"LoRA as {prefix or 'plain'}: merged weights", [merged]) < 1e-6
    largest = report(
        f"LoRA as {prefix or 'plain'}: our transformer = diffusers'", [differences(ours, reference(expected))]
    )
    assert largest < TOLERANCE


def test_published_ranks_have_scale_one(tmp_path: Path) -> None:
    dims = Dims(dim=256, ffn=256, layers=1)
    torch.save({"generator_lora": lora_state(dims, rank=256)}, tmp_path / "lora.pt")
    factors = read_adapter(tmp_path / "lora.pt", alpha=FAMILIES["longlive"].lora_alpha).factors
    assert {(part.rank, part.scale) for part in factors.values()} == {(256, 1.0)}


def test_alpha_and_the_users_weight_scale_the_change(tmp_path: Path) -> None:
    state = {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(4, 32),
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": torch.ones(32, 4),
        "lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(2.0),
    }
    torch.save(state, tmp_path / "lora.pt")
    adapter = read_adapter(tmp_path / "lora.pt", weight=0.5)
    (name, factors), *rest = adapter.factors.items()
    assert (name, rest) == ("blocks.0.attn1.to_q.weight", [])
    assert factors.scale == 0.5 * 2 / 4
    assert torch.equal(factors.delta(), torch.full((32, 32), 0.25 * 4))


def test_a_lora_of_peft_runs_as_peft_runs_it(report: Report, tmp_path: Path) -> None:
    """peft's own adapter on diffusers' transformer, unmerged, against ours merged."""
    peft = pytest.importorskip("peft")
    stock = reference(wan_state())
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v", "ffn.net.2"], init_lora_weights=False)
    wrapped = peft.get_peft_model(stock, config)
    torch.save(peft.get_peft_model_state_dict(wrapped), tmp_path / "lora.pt")
    adapter = read_adapter(tmp_path / "lora.pt", alpha=8.0)
    checkpoint = Checkpoint(source=Path("x"), tensors=wan_state())
    ours, _ = load_transformer(checkpoint, config_of(checkpoint.shapes, HEADS, "x"), CPU, [adapter])
    assert report("merged = peft's adapter on diffusers' transformer", [differences(ours, stock).detach()]) < 1e-4


def test_the_original_autoencoder_loads(tmp_path: Path, report: Report) -> None:
    state = random_state(vae_shapes())
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    ours = load_stock_autoencoder(tmp_path / "Wan2.1_VAE.pth", CPU)
    stock = AutoencoderKLWan(base_dim=8).eval()
    stock.load_state_dict(convert_wan_vae_to_diffusers(dict(state)), strict=True)
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in ours.state_dict().items())
    random = torch.Generator().manual_seed(6)
    latents = torch.randn(1, 16, 2, 2, 3, generator=random)
    pixels = torch.rand(1, 3, 5, 16, 24, generator=random) * 2 - 1
    with torch.no_grad():
        decoded = ours.decode(latents).sample - stock.decode(latents).sample
        encoded = ours.encode(pixels).latent_dist.mode() - stock.encode(pixels).latent_dist.mode()
    assert report("Wan2.1_VAE.pth = diffusers' conversion", [decoded, encoded]) == 0


def test_the_published_autoencoder_has_194_tensors() -> None:
    with torch.device("meta"):
        stock = AutoencoderKLWan()
    expected = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    assert convert_wan_vae_to_diffusers(dict(vae_shapes(base=96))) == expected
    assert len(expected) == 194


def test_the_original_text_encoder_computes_t5(tmp_path: Path, report: Report) -> None:
    """Wan's encoder in a few lines: pre-norm blocks, unscaled attention with a separate position bias in each layer,
    gate(x) * fc1(x). The reference runs on the published names; ours on transformers' module."""
    state = random_state(umt5_shapes())
    torch.save(state, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    ours = load_original_encoder(tmp_path / "models_t5_umt5-xxl-enc-bf16.pth", dtype=torch.float32)
    assert ours.shared.weight is ours.encoder.embed_tokens.weight
    ids = torch.randint(0, 103, (1, 9), generator=torch.Generator().manual_seed(7))
    mask = (torch.arange(9) < 6).long()[None]
    with torch.no_grad():
        hidden = ours(ids, attention_mask=mask).last_hidden_state
    expected = _wan_text_encoder(state, ids, mask, layers=2, heads=4)
    assert report("models_t5_umt5-xxl-enc-bf16.pth = Wan's formulas", [(hidden - expected)[:, :6]]) < TOLERANCE


def _wan_text_encoder(state: State, ids: torch.Tensor, mask: torch.Tensor, *, layers: int, heads: int) -> torch.Tensor:
    """T5's encoder by Wan's names. ids, mask: [1, L]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return state[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    length = ids.shape[1]
    offset = torch.arange(length)[None] - torch.arange(length)[:, None]
    buckets = (offset > 0).long() * 16 + _bucket(offset.abs())
    x = state["token_embedding.weight"][ids]
    for layer in range(layers):
        block = f"blocks.{layer}"
        y = norm(x, f"{block}.norm1.weight")
        q, k, v = (split(y @ state[f"{block}.attn.{name}.weight"].T) for name in "qkv")
        bias = state[f"{block}.pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)[None]
        scores = q @ k.transpose(-1, -2) + bias + (1 - mask[:, None, None]) * torch.finfo(x.dtype).min
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + attended @ state[f"{block}.attn.o.weight"].T
        y = norm(x, f"{block}.norm2.weight")
        gate = torch.nn.functional.gelu(y @ state[f"{block}.ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ state[f"{block}.ffn.fc1.weight"].T)) @ state[f"{block}.ffn.fc2.weight"].T
    return norm(x, "norm.weight")


def _bucket(distance: torch.Tensor) -> torch.Tensor:
    """Of 16: exact up to 7, then logarithmic up to 128."""
    far = 8 + (torch.log(distance.clamp(min=1) / 8) / torch.log(torch.tensor(128 / 8)) * 8).long()
    return torch.where(distance < 8, distance, far.clamp(max=15))
