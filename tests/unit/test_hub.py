"""Resolving names to folders: bundled, local, cached and remote. The hub is a closed port; nothing leaves the
machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from pipelines.core.errors import HubUnreachableError, ModelLayoutError, ModelNotFoundError, UnsafeWeightsError
from pipelines.files import hub
from pipelines.files.hub_files import select_files
from pipelines.files.lora_files import LoraFile
from pipelines.image.loading.load import LoadOptions, load_image_model
from tests.fakes.tiny_models import tiny_sd15

CLOSED = "http://127.0.0.1:9"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def closed_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache and an address at which nobody answers, as HF_ENDPOINT and HF_HOME would."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, hub_id: str, folder: Path) -> Path:
    """Put a folder into the hub's cache as a downloaded snapshot."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="ascii")
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    return repository / "snapshots" / COMMIT


def test_bundled_names_come_first() -> None:
    source = hub.resolve("mini-image")
    assert (source.bundled, source.folder) == (True, hub.BUNDLED_FOLDER / "mini-image")


def test_local_folders_need_no_hub(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    source = hub.resolve(str(folder))
    assert (source.name, source.folder, source.bundled) == ("mine", folder, False)


@pytest.mark.parametrize("name", ["mini-imgae", "mini_image"])
def test_a_missing_model_suggests_near_names(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model.*Did you mean mini-image"):
        load_image_model(name, LoadOptions(device="cpu"))


def test_a_missing_folder_is_not_asked_of_the_hub() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model '\./no/such/folder'.*Bundled: mini-image"):
        hub.resolve("./no/such/folder")


def test_an_unreachable_hub_says_what_to_do(closed_hub: Path) -> None:
    with pytest.raises(HubUnreachableError) as caught:
        load_image_model("stabilityai/sd-turbo", LoadOptions(device="cpu"))
    message = str(caught.value)
    assert f"hub at {CLOSED} cannot be reached" in message
    assert f"not in the cache {closed_hub}" in message
    for remedy in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE=1", "give its path"):
        assert remedy in message
    with pytest.raises(HubUnreachableError):
        hub.resolve_lora(LoraFile(source="latent-consistency/lcm-lora-sdv1-5"))


def test_offline_mode_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="offline mode is enabled"):
        hub.resolve("stabilityai/sd-turbo")


def test_a_cached_model_needs_no_hub(tmp_path: Path, closed_hub: Path) -> None:
    model = tiny_sd15(tmp_path / "sd15")
    (model / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n", encoding="utf-8")
    snapshot = put_in_cache(closed_hub, "owner/model", model)
    notices: list[str] = []
    loaded = load_image_model("owner/model", LoadOptions(device="cpu", dtype="float32", notice=notices.append))
    assert (loaded.name, loaded.licence) == ("owner/model", "creativeml-openrail-m")
    assert not any("Downloading" in notice for notice in notices)
    (repository,) = hub.cached_repositories()
    assert (repository.hub_id, repository.folder) == ("owner/model", snapshot)
    assert repository.size_bytes > 10_000


def test_an_incomplete_cached_model_is_fetched_again(tmp_path: Path, closed_hub: Path) -> None:
    model = tiny_sd15(tmp_path / "sd15")
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    put_in_cache(closed_hub, "owner/model", model)
    with pytest.raises(HubUnreachableError):
        hub.resolve("owner/model")


def test_a_cached_lora_is_found_by_id_and_by_file(tmp_path: Path, closed_hub: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").touch()
    snapshot = put_in_cache(closed_hub, "latent-consistency/lcm-lora-sdv1-5", folder)
    expected = snapshot / "pytorch_lora_weights.safetensors"
    assert hub.resolve_lora(LoraFile(source="latent-consistency/lcm-lora-sdv1-5")) == expected
    named = "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors"
    assert hub.resolve_lora(LoraFile(source=named)) == expected


def test_a_missing_lora_says_what_to_give() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no LoRA file 'gone\.safetensors'.*owner/name"):
        hub.resolve_lora(LoraFile(source="gone.safetensors"))


_LISTING = (
    ".gitattributes README.md model_index.json sd_turbo.safetensors output_tile.jpg scheduler/scheduler_config.json "
    "text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors "
    "tokenizer/merges.txt tokenizer/vocab.json tokenizer/special_tokens_map.json tokenizer/tokenizer_config.json "
    "unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.fp16.safetensors "
    "unet/diffusion_pytorch_model.non_ema.safetensors unet/model.onnx unet/openvino_model.bin unet/openvino_model.xml "
    "vae/config.json vae/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.bin"
)
SD_TURBO = _LISTING.split()


def test_only_what_is_needed_is_fetched() -> None:
    chosen = set(select_files("stabilityai/sd-turbo", SD_TURBO))
    assert {name for name in SD_TURBO if name not in chosen} == {
        ".gitattributes",
        "sd_turbo.safetensors",
        "output_tile.jpg",
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/model.onnx",
        "unet/openvino_model.bin",
        "unet/openvino_model.xml",
        "vae/diffusion_pytorch_model.bin",
    }


def test_shards_are_fetched_with_their_index() -> None:
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json"]
    names += [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert set(select_files("a/b", names)) == set(names)


def test_an_autoencoder_lies_at_the_root() -> None:
    names = [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "taesd.pth",
    ]
    assert select_files("madebyollin/taesd", names, parts=hub.AUTOENCODER_PARTS) == (
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    )


def test_pickles_are_not_fetched_unless_insisted_on() -> None:
    names = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
    with pytest.raises(UnsafeWeightsError, match=r"unet/diffusion_pytorch_model\.bin is a pickle.*--allow-pickle"):
        select_files("a/b", names)
    assert set(select_files("a/b", names, allow_pickle=True)) == set(names)


def test_a_repository_without_an_index_is_no_model() -> None:
    with pytest.raises(ModelLayoutError, match=r"a/b has no model_index\.json"):
        select_files("a/b", ["sd.safetensors"])


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\nText", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: sai-nc-community\n---\n", "sai-nc-community"),
        ("---\ntags: [x]\n---\nlicense: in the text", "unknown (see the model card)"),
        ("No front matter", "unknown (see the model card)"),
    ],
)
def test_the_licence_is_the_cards(tmp_path: Path, card: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert hub.licence_of(tmp_path) == licence
