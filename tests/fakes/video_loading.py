"""Helpers shared by the tests of loading: a loader that records notices, checkpoint files, original folders, fixtures.

A test module imports the fixtures by their function names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipelines.video.loading.load import VideoLoadOptions, load_video_model
from pipelines.video.model import VideoModel
from tests.fakes.hub_server import COMMIT
from tests.fakes.published_checkpoints import wan_state
from tests.fakes.published_components import random_state, umt5_shapes, vae_shapes
from tests.fakes.tiny_video_model import tiny_tokenizer, tiny_video_model, tiny_vocabulary_size


@pytest.fixture(scope="module", name="base")
def base_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete tiny model folder without a family. Not to be modified."""
    return tiny_video_model(tmp_path_factory.mktemp("folder") / "base", family=None)


@pytest.fixture(autouse=True, name="closed_hub")
def closed_hub_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty hub cache, and a hub address at which nobody answers."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> Path:
    """Return a folder whose path suggests no family."""
    return tmp_path / "a" / "b" / "c" / "d" / "files"


class Said(list[str]):
    """Collects notices for the user."""

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
    """Write a miniature Wan 2.1 folder in its original layout."""
    write(folder / "diffusion_pytorch_model.safetensors", wan_state())
    write(folder / "Wan2.1_VAE.pth", random_state(vae_shapes()))
    shapes = umt5_shapes(vocabulary=tiny_vocabulary_size())
    write(folder / "models_t5_umt5-xxl-enc-bf16.pth", random_state(shapes))
    tiny_tokenizer(folder / "google" / "umt5-xxl")
    config = {"model_type": "t2v", "dim": 32, "num_heads": 2, "ffn_dim": 64, "freq_dim": 32, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
