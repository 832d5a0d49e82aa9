"""Loading causal video models by folder and by checkpoint: the choices made, and the notices."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.core.errors import ModelError, ModelLayoutError, ModelNotFoundError
from pipelines.video.loading.families import FAMILIES
from pipelines.video.loading.folders import folders_near, is_video_folder, read_video_folder
from pipelines.video.loading.source import is_video_model, video_weight_files
from pipelines.video.wan.actions import save_actions
from tests.fakes.published_checkpoints import Dims, prefixed, wan_state
from tests.fakes.tiny_models import tiny_sd15
from tests.fakes.tiny_video_model import random_actions, tiny_video_model
from tests.fakes.video_loading import base_fixture, closed_hub_fixture, files_fixture, load, original_folder, write  # noqa: F401  # fixtures


def test_a_folder_by_path(tmp_path: Path) -> None:
    model, said = load(tiny_video_model(tmp_path / "mine"))
    assert (model.name, model.family, model.why) == ("mine", "self-forcing", "zoetrope.json says so")
    assert (model.size_px, model.multiple_px) == ((48, 32), 16)
    assert (model.licence, model.commercial) == ("Apache-2.0 (random weights)", True)
    assert model.preset == replace(FAMILIES["self-forcing"].preset, width=48, height=32)
    assert len(model.weights.mapped) == 69
    assert (model.codec.latent_channels, model.codec.factor) == (16, 8)
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())
    assert "recognised as" not in said.text
    assert "deep sink" in said.text


def test_a_plain_folder_is_wan_and_says_that_it_is_not_causal(base: Path) -> None:
    model, said = load(base)
    assert (model.family, model.why) == ("wan", "a Wan folder without any other hint")
    assert model.preset.shift == 3.0  # the folder's scheduler
    assert model.preset.guidance == 5.0
    assert "recognised as Wan 2.1" in said.text
    assert "not causal" in said.text
    assert model.commercial


def test_the_family_that_the_user_names_counts_most(base: Path) -> None:
    model, said = load(base, family="longlive")
    assert (model.family, model.why, model.preset.window_frames) == ("longlive", "as named", 12)
    assert "recognised as" not in said.text


def test_an_original_folder(files: Path) -> None:
    model, _ = load(original_folder(files / "Wan2.1-T2V-1.3B"))
    assert (model.family, model.why) == ("wan", "by the name Wan2.1-T2V-1.3B")
    assert model.transformer.config.num_attention_heads == 2
    assert model.codec.latent_channels == 16
    assert model.text.encode("a cat").shape == (512, 32)


def test_settings_change_the_preset(tmp_path: Path) -> None:
    folder = tiny_video_model(tmp_path / "mine")
    settings = {"family": "self-forcing", "preset": {"steps": [1000, 500], "window_frames": 15, "sink_frames": 6}}
    (folder / "zoetrope.json").write_text(json.dumps(settings), encoding="utf-8")
    preset = load(folder)[0].preset
    assert (preset.steps, preset.window_frames, preset.width) == ((1000, 500), 15, 832)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"familly": "x"}, "the entry 'familly'"),
        ({"preset": {"window": 3}}, "the preset has no 'window'"),
        ({"preset": 3}, "the preset has no '3'"),
        ({"preset": {"window_frames": "many"}}, "a value of the wrong kind"),
        ({"family": "x"}, "no family of video models named 'x'"),
        ({"family": "longlive", "preset": {"window_frames": 5}}, "cannot hold a sink of 3 and a pass of 3"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base, folder)
    (folder / "zoetrope.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        load(folder)


def test_what_is_a_video_model(base: Path, tmp_path: Path, files: Path) -> None:
    checkpoint = write(files / "x.pt", {"generator": prefixed(wan_state())})
    for name in (base, original_folder(tmp_path / "original"), checkpoint, files, "self-forcing"):
        assert is_video_model(str(name)), name
    assert is_video_model("gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt")
    plain = write(tmp_path / "plain" / "x.safetensors", prefixed(wan_state()))
    assert is_video_model(str(plain))
    other = write(tmp_path / "other" / "x.safetensors", {"model.diffusion_model.input_blocks.0.weight": torch.zeros(1)})
    assert not is_video_model(str(other))
    (tmp_path / "other" / "krea.safetensors").write_bytes(b"half of it")
    assert is_video_model(str(tmp_path / "other" / "krea.safetensors"))
    for name in (tiny_sd15(tmp_path / "sd"), base / "vae", tmp_path / "none", "mini-image", "owner/name", tmp_path):
        assert not is_video_model(str(name)), name


def test_missing_parts_are_named(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base, folder)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ModelLayoutError, match=r"text_encoder is missing"):
        load(folder)
    (folder / "text_encoder").mkdir()
    with pytest.raises(ModelLayoutError, match=r"text_encoder.config\.json is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [("WanImageToVideoPipeline", "image-to-video model"), ("WanVACEPipeline", "not a Wan 2.1 text-to-v")],
)
def test_pipelines_of_another_kind(pipeline: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=said):
        load(tmp_path)


def test_an_original_image_to_video_folder(files: Path) -> None:
    folder = original_folder(files / "x")
    (folder / "config.json").write_text(json.dumps({"model_type": "i2v"}), encoding="utf-8")
    with pytest.raises(ModelLayoutError, match=r"type 'i2v', not text-to-video"):
        load(folder)


# Checkpoints beside a folder


def test_a_checkpoint_finds_the_folder_near_it(base: Path, files: Path) -> None:
    shutil.copytree(base, files / "wan_models" / "base")
    state = wan_state(seed=31)
    file = write(files / "checkpoints" / "self_forcing_dmd.pt", {"generator_ema": prefixed(state)})
    model, said = load(file)
    assert (model.name, model.family, model.why) == (
        "self_forcing_dmd.pt",
        "self-forcing",
        "by the name self_forcing_dmd.pt",
    )
    assert f"come from {files / 'wan_models' / 'base'}" in said.text
    assert "Licence of Self-Forcing: CC-BY-NC-SA-4.0; no commercial use" in said.text
    assert not model.commercial
    weight = model.transformer.state_dict()["blocks.1.ffn.net.2.weight"]
    assert torch.equal(weight, state["blocks.1.ffn.2.weight"])


def test_a_folder_with_one_checkpoint(base: Path, files: Path) -> None:
    write(files / "causvid" / "model.pt", {"generator": prefixed(wan_state())})
    model, _ = load(files / "causvid", base=str(base))
    assert (model.family, model.why) == ("causvid", f"by the name of a folder of {files / 'causvid' / 'model.pt'}")


def test_safetensors_before_pickles(base: Path, files: Path) -> None:
    write(files / "model.pt", {"generator": prefixed(wan_state(seed=1))})
    state = wan_state(seed=2)
    write(files / "model.safetensors", prefixed(state))
    model, _ = load(files, base=str(base), family="self-forcing")
    assert torch.equal(model.transformer.proj_out.bias, state["head.head.bias"])


def test_shards(base: Path, files: Path) -> None:
    state = prefixed(wan_state())
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:30], "model-00002-of-00002.safetensors": names[30:]}
    for file, inside in parts.items():
        write(files / file, {name: state[name] for name in inside})
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (files / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert len(load(files, base=str(base), family="self-forcing")[0].weights.mapped) == 69
    (files / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLayoutError, match=r"model-00002-of-00002\.safetensors is missing"):
        load(files, base=str(base), family="self-forcing")


def test_several_checkpoints_must_be_named(base: Path, files: Path) -> None:
    for name in ("one.pt", "two.pt"):
        write(files / name, {"generator": prefixed(wan_state())})
    with pytest.raises(ModelLayoutError, match=r"several weight files: one\.pt, two\.pt"):
        load(files, base=str(base))


def test_no_folder_near_a_checkpoint(files: Path) -> None:
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(wan_state())})
    with pytest.raises(ModelNotFoundError, match=r"only a transformer.*--base.*Wan2\.1-T2V-1\.3B-Diffusers"):
        load(file)
    with pytest.raises(ModelNotFoundError, match=r"not a Wan 2\.1 model folder"):
        load(file, base=str(files))


def test_several_folders_near_a_checkpoint(base: Path, files: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(base, files / name)
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(wan_state())})
    assert len(folders_near(file)) == 2
    with pytest.raises(ModelLayoutError, match=r"several model folders.*--base"):
        load(file)


def test_a_base_may_lack_its_transformer(base: Path, files: Path) -> None:
    shutil.copytree(base, files / "base", ignore=shutil.ignore_patterns("transformer"))
    assert is_video_folder(files / "base")
    with pytest.raises(ModelLayoutError, match=r"transformer is missing"):
        read_video_folder(files / "base")
    dims = Dims(dim=128, ffn=64, layers=1)
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(wan_state(dims))})
    config = load(file)[0].transformer.config
    assert (config.num_attention_heads, config.attention_head_dim, config.num_layers) == (1, 128, 1)


def test_heads_that_nothing_tells(base: Path, files: Path) -> None:
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(wan_state(Dims(dim=48)))})
    with pytest.raises(ModelLayoutError, match=r"48 wide, which is not a multiple of Wan's head width 128"):
        load(file, base=str(base))


def test_a_checkpoint_that_says_nothing_asks_for_its_family(base: Path, files: Path) -> None:
    file = write(files / "model.pt", {"generator": prefixed(wan_state())})
    with pytest.raises(ModelError, match=r"neither its name nor its parts.*--family: longlive"):
        load(file, base=str(base))
    model, _ = load(file, base=str(base), family="causal-forcing")
    assert (model.family, model.why) == ("causal-forcing", "as named")


def test_three_parts_say_rolling_forcing(base: Path, files: Path) -> None:
    states = {name: prefixed(wan_state(seed=i)) for i, name in enumerate(("generator", "critic", "generator_ema"))}
    model, said = load(write(files / "model.pt", states), base=str(base))
    assert (model.family, model.why) == ("rolling-forcing", "by its parts critic, generator, generator_ema")
    assert "recognised as Rolling Forcing" in said.text
    assert "academic purposes only" in said.text
    assert set(model.weights.ignored) == {"generator (69 entries)", "critic (69 entries)"}


def test_a_tensor_beside_the_parts_is_ignored(base: Path, files: Path) -> None:
    file = write(files / "self_forcing_dmd.pt", {"generator_ema": prefixed(wan_state()), "decay": torch.tensor(0.99)})
    assert load(file, base=str(base))[0].weights.ignored == ("decay",)


def test_a_folders_own_name_counts_and_not_those_around_it(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "causvid" / "mine")
    assert load(tmp_path / "causvid" / "mine")[0].family == "wan"
    shutil.copytree(base, tmp_path / "longlive-diffusers")
    model, said = load(tmp_path / "longlive-diffusers")
    assert (model.family, model.why) == ("longlive", "by the name longlive-diffusers")
    assert "recognised as LongLive" in said.text


def test_a_model_card_beside_the_weights_counts(base: Path, files: Path) -> None:
    file = write(files / "causal_forcing.pt", {"generator": prefixed(wan_state())})
    (files / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    model, said = load(file, base=str(base))
    assert (model.licence, model.commercial) == ("cc-by-nc-4.0; no commercial use", False)
    assert "no commercial use" in said.text


# -- actions -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_actions_goes_with_the_transformer(tmp_path: Path) -> None:
    folder = tiny_video_model(tmp_path / "acting", actions=True)
    model, _ = load(folder)
    embedder = model.transformer.action_embedder
    assert model.takes_actions
    assert embedder is not None
    assert torch.equal(embedder.linear_1.weight, random_actions(32).linear_1.weight)
    assert len(model.weights.mapped) == 69
    assert dict(video_weight_files(str(folder)))["actions"] == folder / "actions" / "model.safetensors"
    checkpoint = write(tmp_path / "elsewhere" / "model.safetensors", wan_state())
    assert not load(checkpoint, base=str(folder), family="wan")[0].takes_actions, "they belong to other weights"


def test_a_folder_of_actions_that_do_not_fit(tmp_path: Path) -> None:
    folder = tiny_video_model(tmp_path / "acting", actions=True)
    save_actions(random_actions(48), folder / "actions")
    with pytest.raises(ModelLayoutError, match="dim 48; the transformer's time embedding is 32 wide"):
        load(folder)


def test_diffusers_loads_a_folder_with_actions(tmp_path: Path) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    folder = tiny_video_model(tmp_path / "acting", actions=True)
    alone = WanTransformer3DModel.from_pretrained(folder / "transformer")
    whole = WanPipeline.from_pretrained(folder).transformer
    for name, weight in alone.state_dict().items():
        assert torch.equal(whole.state_dict()[name], weight)
