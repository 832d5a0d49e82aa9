"""Loading of causal video models by path, checkpoint and name: what is chosen and said, and clear errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipelines.errors import (
    HubUnreachableError,
    ModelError,
    ModelLayoutError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnsafeWeightsError,
)
from pipelines.lora_files import LoraFile
from pipelines.video import load_transformer as loading
from pipelines.video.checkpoint_files import read_checkpoint
from pipelines.video.families import FAMILIES
from pipelines.video.folders import folders_near, is_video_folder, read_video_folder
from pipelines.video.load_video import VideoLoadOptions, load_video_model
from pipelines.video.model import VideoModel
from pipelines.video.source import BASE_ID, is_video_model
from tests.fakes.published_checkpoints import TINY, Dims, lora_state, prefixed, wan_state
from tests.fakes.published_components import random_state, umt5_shapes, vae_shapes
from tests.fakes.tiny_models import tiny_sd15
from tests.fakes.tiny_video_model import tiny_tokenizer, tiny_transformer, tiny_video_model, tiny_vocabulary_size

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny model folder that names no family. Not to be changed."""
    return tiny_video_model(tmp_path_factory.mktemp("folder") / "base", family=None)


@pytest.fixture(autouse=True)
def closed_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and an address that nobody answers."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder whose path hints at no family."""
    return tmp_path / "a" / "b" / "c" / "d" / "files"


class Said(list[str]):
    """Collects what the user is told."""

    @property
    def text(self) -> str:
        return " | ".join(self)


def load(model: Path | str, **options: Any) -> tuple[VideoModel, Said]:
    said = Said()
    chosen = VideoLoadOptions(device="cpu", dtype="float32", notice=said.append, **options)
    return load_video_model(str(model), chosen), said


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    return file


def in_cache(cache: Path, hub_id: str, folder: Path) -> None:
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="ascii")
    shutil.copytree(folder, repository / "snapshots" / COMMIT)


def original_folder(folder: Path) -> Path:
    """Wan 2.1 as Wan published it, in miniature."""
    write(folder / "diffusion_pytorch_model.safetensors", wan_state())
    write(folder / "Wan2.1_VAE.pth", random_state(vae_shapes()))
    shapes = umt5_shapes(vocabulary=tiny_vocabulary_size())
    write(folder / "models_t5_umt5-xxl-enc-bf16.pth", random_state(shapes))
    tiny_tokenizer(folder / "google" / "umt5-xxl")
    config = {"model_type": "t2v", "dim": 32, "num_heads": 2, "ffn_dim": 64, "freq_dim": 32, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# Folders


def test_a_folder_by_path(tmp_path: Path) -> None:
    model, said = load(tiny_video_model(tmp_path / "mine"))
    assert (model.name, model.family, model.why) == ("mine", "self-forcing", "zoetrope.json says so")
    assert (model.size_px, model.multiple_px) == ((48, 32), 16)
    assert (model.licence, model.commercial) == ("Apache-2.0 (random weights)", True)
    assert model.preset == replace(FAMILIES["self-forcing"].preset, width=48, height=32)
    assert len(model.weights.mapped) == 69
    assert (model.codec.latent_channels, model.codec.factor) == (16, 8)
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())
    assert "taken for" not in said.text
    assert "deep sink" in said.text


def test_a_plain_folder_is_wan_and_says_that_it_is_not_causal(base: Path) -> None:
    model, said = load(base)
    assert (model.family, model.why) == ("wan", "a Wan folder that says nothing else")
    assert model.preset.shift == 3.0  # the folder's scheduler
    assert model.preset.guidance == 5.0
    assert "taken for Wan 2.1" in said.text
    assert "not causal" in said.text
    assert model.commercial


def test_the_family_that_the_user_names_counts_most(base: Path) -> None:
    model, said = load(base, family="longlive")
    assert (model.family, model.why, model.preset.window_frames) == ("longlive", "as named", 12)
    assert "taken for" not in said.text


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
        ({"family": "longlive", "preset": {"window_frames": 5}}, "does not hold 3 of the sink and 3"),
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
    [("WanImageToVideoPipeline", "image-to-video model"), ("WanVACEPipeline", "no Wan 2.1 text-to-v")],
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
    with pytest.raises(ModelNotFoundError, match=r"transformer only.*--base.*Wan2\.1-T2V-1\.3B-Diffusers"):
        load(file)
    with pytest.raises(ModelNotFoundError, match=r"no Wan 2\.1 model folder"):
        load(file, base=str(files))


def test_several_folders_near_a_checkpoint(base: Path, files: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(base, files / name)
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(wan_state())})
    assert len(folders_near(file)) == 2
    with pytest.raises(ModelLayoutError, match=r"Several model folders.*--base"):
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
    with pytest.raises(ModelLayoutError, match=r"48 wide, which is no multiple of Wan's heads of 128"):
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
    assert "taken for Rolling Forcing" in said.text
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
    assert "taken for LongLive" in said.text


def test_a_model_card_beside_the_weights_counts(base: Path, files: Path) -> None:
    file = write(files / "causal_forcing.pt", {"generator": prefixed(wan_state())})
    (files / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8")
    model, said = load(file, base=str(base))
    assert (model.licence, model.commercial) == ("cc-by-nc-4.0; no commercial use", False)
    assert "no commercial use" in said.text


# Errors


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"generator": prefixed({**wan_state(), "blocks.0.cross_attn.k_img.weight": torch.zeros(1)})},
            "image-to-video",
        ),
        ({"generator": lora_state()}, "a LoRA, not a whole model"),
        ({"generator": random_state(vae_shapes())}, "a video autoencoder"),
        ({"generator": random_state(umt5_shapes())}, "a text encoder"),
        ({"generator": {"encoder.0.weight": torch.zeros(1)}}, "a tiny video autoencoder"),
        ({"critic": prefixed(wan_state())}, "no weights of a generator, but critic"),
        ({"generator": prefixed(wan_state(Dims(channels=48)))}, "made on Wan 2.2 TI2V 5B"),
        ([1, 2], "holds a list"),
        (
            {"generator": prefixed({k: v for k, v in wan_state().items() if "ffn.2" not in k})},
            "missing blocks.0.ffn.net",
        ),
        (
            {"generator": prefixed({**wan_state(), "blocks.0.other.weight": torch.zeros(1)})},
            "unexpected model.blocks.0.o",
        ),
        ({"generator": prefixed({k: v for k, v in wan_state().items() if "time_emb" not in k})}, "lacks condition_emb"),
        (
            {"generator": prefixed({**wan_state(), "blocks.1.self_attn.q.weight": torch.zeros(16, 32)})},
            r"other shapes blocks.1.attn1.to_q.weight: \[16, 32\] in the file",
        ),
    ],
)
def test_files_that_do_not_fit(content: Any, said: str, base: Path, files: Path) -> None:
    file = write(files / "self_forcing_dmd.pt", content)
    with pytest.raises(ModelLayoutError, match=said):
        load(file, base=str(base))


def test_inputs_beside_the_latents(base: Path, files: Path) -> None:
    state = {**wan_state(), "patch_embedding.weight": torch.zeros(32, 36, 1, 2, 2)}
    file = write(files / "self_forcing_dmd.pt", {"generator": prefixed(state)})
    with pytest.raises(ModelLayoutError, match=r"takes 36 channels and gives 16.*I2V"):
        load(file, base=str(base))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(suffix: str, share: float, base: Path, files: Path) -> None:
    state = prefixed(wan_state())
    file = write(files / f"self_forcing_dmd{suffix}", {"generator": state} if suffix == ".pt" else state)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelLayoutError, match=r"self_forcing_dmd.*cannot be read.*download it again"):
        load(file, base=str(base))


def test_old_pickles_load_and_pickled_code_does_not(files: Path) -> None:
    files.mkdir(parents=True)
    torch.save({"a": torch.ones(3)}, files / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(files / "old.pt").tensors["a"], torch.ones(3))
    torch.save({"a": torch.ones(3), "hook": print}, files / "new.pt")
    with pytest.raises(UnsafeWeightsError, match=r"holds more than tensors.*print.*any code.*safetensors"):
        read_checkpoint(files / "new.pt")


def test_the_wrong_size_for_a_family(base: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.video.recognise.SIZES", {32: "1.3B"})
    file = write(files / "krea-realtime-video-14b.safetensors", prefixed(wan_state()))
    with pytest.raises(ModelError, match=r"size of Wan 2\.1 1\.3B.*taken for Krea.*14B only.*--family.*self-forcing"):
        load(file, base=str(base))


def test_too_little_memory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_memory_bytes", lambda device: 2**28)
    with pytest.raises(OutOfMemoryError, match=r"transformer alone needs 0\.0 GiB of memory in float32.*bfloat16"):
        load(base)


def test_parts_of_different_models(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base, folder)
    shutil.rmtree(folder / "transformer")
    tiny_transformer(text_dim=24).save_pretrained(folder / "transformer")
    with pytest.raises(ModelLayoutError, match=r"embeddings are 32 wide, the transformer reads 24"):
        load(folder)
    shutil.rmtree(folder / "transformer")
    tiny_transformer(in_channels=8, out_channels=8).save_pretrained(folder / "transformer")
    with pytest.raises(ModelLayoutError, match=r"autoencoder has 16 latent channels, the transformer 8"):
        load(folder)


def test_a_path_that_is_neither(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ModelLayoutError, match=r"neither a Wan 2\.1 model folder nor a checkpoint"):
            load(path)
    with pytest.raises(ModelNotFoundError, match=r"no video model './none'.*self-forcing"):
        load("./none")


# LoRA


def test_longlives_lora_beside_its_base_is_merged(base: Path, files: Path) -> None:
    state, lora = wan_state(), lora_state(rank=4)
    file = write(files / "longlive_base.pt", {"generator": prefixed(state)})
    model, said = load(file, base=str(base))
    assert "not beside longlive_base.pt" in said.text
    assert torch.equal(
        model.transformer.state_dict()["blocks.0.attn1.to_q.weight"], state["blocks.0.self_attn.q.weight"]
    )
    # The published file has rank 256 and alpha 256; this one's rank is 4, so its change counts 64 times.
    write(files / "lora.pt", {"generator_lora": lora})
    model, said = load(file, base=str(base))
    assert "lora.pt is merged into longlive_base.pt" in said.text
    a, b = (lora[f"base_model.model.blocks.0.self_attn.q.lora_{side}.weight"] for side in "AB")
    expected = state["blocks.0.self_attn.q.weight"] + 256 / 4 * b @ a
    torch.testing.assert_close(model.transformer.state_dict()["blocks.0.attn1.to_q.weight"], expected)


def test_the_users_own_lora(base: Path, files: Path) -> None:
    file = write(files / "style.safetensors", lora_state(rank=2, prefix="diffusion_model.", modules="q"))
    plain = load(base)[0].transformer.state_dict()
    changed = load(base, loras=(LoraFile(source=str(file), weight=0.5),))[0].transformer.state_dict()
    different = {name for name in plain if not torch.equal(plain[name], changed[name])}
    assert different == {f"blocks.{i}.attn{j}.to_q.weight" for i in range(2) for j in (1, 2)}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lora_state(Dims(dim=64, ffn=128)), r"makes a change of shape \[64, 64\], the weight has \[32, 32\]"),
        (lora_state(Dims(layers=3)), r"weights that this model does not have: blocks\.2\.attn.*and 4 more"),
        ({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 32)}, "one factor without the other"),
        (
            {
                "blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 32),
                "blocks.0.self_attn.q.lora_B.weight": torch.zeros(32, 3),
            },
            "ranks 2 and 3",
        ),
        ({"blocks.0.self_attn.q.dora_scale": torch.zeros(2)}, "not a plain LoRA.*dora_scale"),
        (wan_state(), "not a plain LoRA"),
    ],
)
def test_loras_that_do_not_fit(state: dict[str, torch.Tensor], said: str, base: Path, files: Path) -> None:
    file = write(files / "style.safetensors", state)
    with pytest.raises(ModelLayoutError, match=said):
        load(base, loras=(LoraFile(source=str(file)),))


# The hub's cache


def test_a_familys_name_uses_what_the_cache_has(base: Path, files: Path, closed_hub: Path) -> None:
    with pytest.raises(HubUnreachableError, match="gdhe17/Self-Forcing is not in the cache"):
        load("self-forcing")
    write(files / "checkpoints" / "self_forcing_dmd.pt", {"generator_ema": prefixed(wan_state())})
    in_cache(closed_hub, "gdhe17/Self-Forcing", files)
    with pytest.raises(ModelNotFoundError, match=r"transformer only"):
        load("self-forcing")
    in_cache(closed_hub, BASE_ID, base)
    for name in ("self-forcing", "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt"):
        model, said = load(name)
        assert (model.family, model.name) == ("self-forcing", name)
        assert "come from" in said.text
    assert load(BASE_ID)[0].family == "wan"
    assert load("wan")[0].name == BASE_ID


def test_dims_of_the_fakes_agree() -> None:
    config = tiny_transformer().config
    assert (config.ffn_dim, config.text_dim, config.freq_dim, config.num_layers) == (
        TINY.ffn,
        TINY.text,
        TINY.freq,
        TINY.layers,
    )
