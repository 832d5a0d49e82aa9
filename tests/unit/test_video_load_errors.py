"""Unsuitable files of video models: each error describes the file and a remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.core.errors import ModelError, ModelLayoutError, ModelNotFoundError, OutOfMemoryError, UnsafeWeightsError
from pipelines.files.checkpoints import read_checkpoint
from pipelines.video.loading import transformer as loading
from tests.fakes.published_checkpoints import Dims, lora_state, prefixed, wan_state
from tests.fakes.published_components import random_state, umt5_shapes, vae_shapes
from tests.fakes.tiny_video_model import tiny_transformer
from tests.fakes.video_loading import base_fixture, closed_hub_fixture, files_fixture, load, write  # noqa: F401  # fixtures


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
        ({"critic": prefixed(wan_state())}, "no generator weights, only critic"),
        ({"generator": prefixed(wan_state(Dims(channels=48)))}, "based on Wan 2.2 TI2V 5B"),
        ([1, 2], "contains a list"),
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
    with pytest.raises(ModelLayoutError, match=r"takes 36 channels and returns 16.*I2V"):
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
    with pytest.raises(UnsafeWeightsError, match=r"holds more than tensors.*print.*arbitrary code.*safetensors"):
        read_checkpoint(files / "new.pt")


def test_the_wrong_size_for_a_family(base: Path, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.video.loading.recognise.SIZES", {32: "1.3B"})
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
