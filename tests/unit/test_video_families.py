"""The table of video families: the published numbers, the hints, the licences, and clear errors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePath

import pytest

from cache.kv.policies import POLICIES, make_policy
from pipelines.core.errors import ModelError, ModelLayoutError
from pipelines.video.loading import checkpoint_keys
from pipelines.video.loading.checkpoint_keys import (
    KeyReport,
    match,
    module_to_diffusers,
    refuse_others,
    strip,
    to_diffusers,
)
from pipelines.video.loading.companion_keys import umt5_to_transformers, vae_to_diffusers
from pipelines.video.loading.families import FAMILIES, MINI_VIDEO, family_named, family_of_containers, family_of_path
from pipelines.video.options import VideoOptions, chosen_policy, chosen_preset
from pipelines.video.presets import Licence, VideoPreset
from tests.fakes.published_checkpoints import PUBLISHED, lora_state, wan_shapes
from tests.fakes.published_components import umt5_shapes, vae_shapes


def test_the_table_in_the_docs_says_the_sizes_of_the_presets() -> None:
    table = (Path(__file__).parents[2] / "docs" / "video-models.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([\w-]+)` \|.*\| (\d+), (\d+), (\d+), (sink|deep-sink|adaptive-sink)\b", table, re.MULTILINE
    )
    assert {"self-forcing", "longlive", "rolling-forcing", "mini-video"} <= {name for name, *_ in rows}
    for name, chunk, window, sink, policy in rows:
        preset = FAMILIES[name].preset
        told = (int(chunk), int(window), int(sink), policy)
        assert told == (preset.chunk_frames, preset.window_frames, preset.sink_frames, preset.policy), name


@pytest.mark.parametrize(
    ("name", "timesteps"),
    [
        ("self-forcing", [1000, 937.5, 833.333, 625]),
        ("causal-forcing", [1000, 937.5, 833.333, 625]),
        ("causal-forcing-framewise", [1000, 937.5, 833.333, 625]),
        ("causal-forcing-2step", [1000, 833.333]),
        ("causal-forcing-1step", [1000]),
        ("longlive", [1000, 937.5, 833.333, 625]),
        ("rolling-forcing", [1000, 952.381, 882.353, 769.231, 555.556]),
        ("causvid", [1000, 757, 522]),
        ("krea", [1000, 937.5, 833.333, 625, 0]),
        ("streamdiffusion-v2", [700, 500, 400, 200]),
        ("shotstream", [1000, 957.929, 888.889, 737.589]),
    ],
)
def test_steps_are_the_published_ones_after_warping(name: str, timesteps: list[float]) -> None:
    steps = FAMILIES[name].preset.step_list().steps()
    assert [step.timestep for step in steps] == pytest.approx(timesteps, abs=1e-3)


def test_few_step_models_take_four_steps_for_the_first_frame() -> None:
    for name in ("causal-forcing-1step", "causal-forcing-2step"):
        assert FAMILIES[name].preset.step_list(first=True).raw == (1000, 750, 500, 250)
    assert FAMILIES["longlive"].preset.step_list(first=True).raw == (1000, 750, 500, 250)


@pytest.mark.parametrize(
    ("name", "policy", "chunk", "window", "sink", "stream"),
    [
        ("self-forcing", "deep-sink", 3, 21, 10, "chunk"),
        ("causal-forcing", "deep-sink", 3, 21, 10, "chunk"),
        ("causal-forcing-framewise", "deep-sink", 1, 21, 10, "chunk"),
        ("longlive", "sink", 3, 12, 3, "chunk"),
        ("rolling-forcing", "sink", 3, 21, 3, "rolling"),
        ("causvid", "window", 3, 21, 0, "chunk"),
        ("krea", "rebuild", 3, 6, 0, "chunk"),
        ("streamdiffusion-v2", "adaptive-sink", 1, 6, 3, "step-batch"),
        ("shotstream", "dual", 3, 27, 6, "chunk"),
    ],
)
def test_windows_and_sinks(name: str, policy: str, chunk: int, window: int, sink: int, stream: str) -> None:
    preset = FAMILIES[name].preset
    assert (preset.policy, preset.chunk_frames, preset.window_frames, preset.sink_frames) == (
        policy,
        chunk,
        window,
        sink,
    )
    assert preset.stream == stream


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_makes_its_cache_policy(name: str) -> None:
    preset = FAMILIES[name].preset
    policy = make_policy(preset.policy, grid=(2, 3), **preset.cache_options())
    assert policy.chunk_frames == preset.pass_frames
    assert policy.capacity_tokens == 6 * preset.window_frames


def test_a_joint_window_passes_all_steps_at_once() -> None:
    assert FAMILIES["rolling-forcing"].preset.pass_frames == 15
    assert FAMILIES["causal-forcing-long"].preset.pass_frames == 12
    assert FAMILIES["streamdiffusion-v2"].preset.pass_frames == 1


def test_only_the_base_model_needs_guidance() -> None:
    guided = {name for name, family in FAMILIES.items() if family.preset.guidance != 1}
    assert guided == {"wan"}
    assert FAMILIES["wan"].preset.negative_prompt
    assert len(FAMILIES["wan"].preset.steps) == 50
    assert "not causal" in FAMILIES["wan"].notice


def test_licences_without_commercial_use_are_marked() -> None:
    restricted = {name for name, family in FAMILIES.items() if not family.licence.commercial}
    assert restricted == {"causvid", "krea", "self-forcing", "rolling-forcing", "streamdiffusion-v2"}
    assert FAMILIES["krea"].licence.summary == "CC-BY-NC-SA-4.0; no commercial use"
    assert FAMILIES["wan"].licence.summary == "Apache-2.0"
    assert Licence(name="X", commercial=False, note="see there").summary == "X; no commercial use; see there"


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.family)
def test_published_paths_are_recognised(published: object) -> None:
    found = family_of_path(PurePath(published.file))  # type: ignore[attr-defined]
    assert found is not None
    assert found.name == published.family  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("Self-Forcing/wan_models/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors", "wan"),
        ("Wan2.1-T2V-1.3B/checkpoints/self_forcing_dmd.pt", "self-forcing"),
        ("CausVid/model.pt", "causvid"),
        ("StreamDiffusionV2/checkpoint.pt", "streamdiffusion-v2"),
        ("weights/LongLive/base.pt", "longlive"),
        ("rolling-forcing/self_forcing_tuned.pt", "self-forcing"),
        ("models/generator.pt", None),
    ],
)
def test_the_nearest_name_counts(path: str, family: str | None) -> None:
    found = family_of_path(PurePath(path))
    assert (found.name if found else None) == family


def test_three_parts_are_rolling_forcing() -> None:
    found = family_of_containers(frozenset({"generator", "critic", "generator_ema"}))
    assert found is not None
    assert found.name == "rolling-forcing"
    assert family_of_containers(frozenset({"generator"})) is None
    assert family_of_containers(frozenset()) is None


def test_an_unknown_family_is_told_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no family.*'self forcing'.*self-forcing"):
        family_named("self forcing")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window_frames": 12, "sink_frames": 10}, r"12 latent frames cannot hold a sink of 10.*at least 13"),
        ({"stream": "rolling", "window_frames": 11}, r"cannot hold a sink of 0 and a pass of 12.*at least 12"),
        ({"chunk_frames": 0}, r"chunks of at least 1"),
        ({"sink_frames": -1}, r"sink of at least 0"),
        ({"steps": (500, 750)}, r"do not decrease"),
        ({"steps": (1001,)}, r"do not decrease from at most 1000"),
        ({"steps": ()}, r"preset has no steps"),
        ({"stream": "other"}, r"no kind of stream 'other'"),
        ({"sampler": "heun"}, r"no sampler 'heun'"),
    ],
)
def test_presets_that_cannot_work_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        replace(VideoPreset(), **changes)  # type: ignore[arg-type]


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no cache policy 'best'.*deep-sink"):
        VideoPreset(policy="best").cache_options()


def test_wrappers_are_stripped_wherever_they_are() -> None:
    name = "module.model._fsdp_wrapped_module.blocks.3._checkpoint_wrapped_module._orig_mod.self_attn.q.weight"
    assert strip(name) == "blocks.3.self_attn.q.weight"
    assert strip("model.diffusion_model.head.head.bias") == "head.head.bias"
    assert strip("blocks.0.model_is_no_prefix.weight") == "blocks.0.model_is_no_prefix.weight"


def test_every_original_name_has_one_target() -> None:
    targets = [to_diffusers(name) for name in wan_shapes()]
    assert None not in targets
    assert len(set(targets)) == len(targets) == 69
    assert to_diffusers("blocks.0.norm3.bias") == "blocks.0.norm2.bias"
    assert to_diffusers("blocks.0.modulation") == "blocks.0.scale_shift_table"
    assert to_diffusers("head.modulation") == "scale_shift_table"
    for nothing in ("blocks.0.norm2.weight", "blocks.0.norm1.weight", "freqs", "blocks.0.self_attn.qkv.weight"):
        assert to_diffusers(nothing) is None


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("blocks.4.cross_attn.o", "blocks.4.attn2.to_out.0"),
        ("model.blocks.4.ffn.2", "blocks.4.ffn.net.2"),
        ("transformer.blocks.4.attn1.to_q", "blocks.4.attn1.to_q"),
        ("time_projection.1", "condition_embedder.time_proj"),
    ],
)
def test_modules_of_adapters(module: str, target: str) -> None:
    assert module_to_diffusers(module) == target


def test_a_match_lists_what_is_wrong() -> None:
    shapes = {**wan_shapes(), "extra.weight": (1,), "model.head.head.bias": (64,)}
    del shapes["blocks.1.ffn.2.bias"]
    shapes["blocks.0.self_attn.k.weight"] = (32, 16)
    expected = {str(to_diffusers(name)): shape for name, shape in wan_shapes().items()}
    report = match(shapes, expected, ignored=("critic (3 entries)",))
    assert report.missing == ("blocks.1.ffn.net.2.bias",)
    assert report.unexpected == ("extra.weight", "model.head.head.bias")
    assert report.mismatched == {"blocks.0.attn1.to_k.weight": ((32, 16), (32, 32))}
    assert report.ignored == ("critic (3 entries)",)
    with pytest.raises(ModelLayoutError) as caught:
        report.raise_unless_complete("file.pt")
    for part in ("file.pt", "missing blocks.1.ffn.net.2.bias", "unexpected extra.weight", "[32, 16] in the file"):
        assert part in str(caught.value)


def test_a_complete_report_is_quiet() -> None:
    KeyReport(mapped={"a": "a"}, mismatched={}).raise_unless_complete("file")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["blocks.0.cross_attn.k_img.weight"], "image-to-video"),
        (["condition_embedder.image_embedder.norm1.weight"], "image-to-video"),
        (["vace_blocks.0.after_proj.bias"], "VACE"),
        (list(lora_state()), "a LoRA, not a whole model"),
        (list(vae_shapes()), "a video autoencoder"),
        (["encoder.0.weight", "decoder.3.conv.0.weight"], "tiny video autoencoder"),
        (list(umt5_shapes()), "a text encoder"),
        (["encoder.block.0.layer.0.layer_norm.weight"], "a text encoder"),
        (["down_blocks.0.weight"], "no Wan 2.1 transformer"),
        ([], "no Wan 2.1 transformer"),
    ],
)
def test_other_files_are_called_by_their_kind(names: list[str], said: str) -> None:
    with pytest.raises(ModelLayoutError, match=said):
        refuse_others(names, "file.pt")


def test_a_transformer_is_none_of_those() -> None:
    refuse_others(wan_shapes(), "file.pt")
    refuse_others([f"model.{name}" for name in wan_shapes()], "file.pt")


def test_lists_are_short() -> None:
    assert checkpoint_keys.listed(["a", "b"]) == "a, b"
    assert checkpoint_keys.listed([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5 and 3 more"


def test_names_of_companions() -> None:
    assert (
        vae_to_diffusers("decoder.upsamples.4.shortcut.weight") == "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"
    )
    assert vae_to_diffusers("decoder.upsamples.7.time_conv.bias") == "decoder.up_blocks.1.upsamplers.0.time_conv.bias"
    assert vae_to_diffusers("encoder.downsamples.2.resample.1.bias") == "encoder.down_blocks.2.resample.1.bias"
    assert vae_to_diffusers("decoder.middle.1.to_qkv.weight") == "decoder.mid_block.attentions.0.to_qkv.weight"
    assert vae_to_diffusers("model.conv2.bias") == "post_quant_conv.bias"
    assert vae_to_diffusers("decoder.middle.7.x") is None
    assert vae_to_diffusers("other.weight") is None
    assert umt5_to_transformers("token_embedding.weight") == "shared.weight"
    assert umt5_to_transformers("blocks.9.ffn.gate.0.weight") == "encoder.block.9.layer.1.DenseReluDense.wi_0.weight"
    assert umt5_to_transformers("blocks.9.ffn.gate.1.weight") is None


def test_another_policy_brings_what_the_preset_says_of_it() -> None:
    grid = (8, 8)
    dual = chosen_preset(MINI_VIDEO, VideoOptions(policy="dual", policy_options={"local_frames": 6}))
    assert dual.policy_options == {"context_frames": 3, "local_frames": 6, "theta": 0.0, "empty_context": False}
    for name in POLICIES:
        chosen = chosen_policy(chosen_preset(MINI_VIDEO, VideoOptions(policy=name)), grid)
        assert chosen.chunk_frames == 3
    assert chosen_preset(MINI_VIDEO, VideoOptions()).policy_options == {}
