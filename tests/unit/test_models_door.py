"""`zoetrope models`: its lists and messages; the hub is a closed port."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from app.cli import models
from pipelines.core.errors import HubUnreachableError, ModelError
from pipelines.files import hub
from tests.fakes.hub_server import COMMIT, hub_of
from tests.fakes.tiny_models import tiny_sd_turbo, tiny_taesd
from tests.fakes.tiny_video_model import tiny_video_model
from tests.unit.test_hub import put_in_cache

ROOT = Path(models.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    models.add_parser(parser.add_subparsers())
    options = parser.parse_args(["models", *arguments])
    return int(options.run(options))


def test_list_shows_bundled_and_cached(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache))
    turbo = tiny_sd_turbo(tmp_path / "turbo")
    (turbo / "README.md").write_text("---\nlicense: other\nlicense_name: sai-nc\n---\n", encoding="utf-8")
    put_in_cache(cache, "stabilityai/sd-turbo", turbo)
    put_in_cache(cache, "madebyollin/taesd", tiny_taesd(tmp_path / "taesd"))
    put_in_cache(cache, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", tiny_video_model(tmp_path / "wan"))
    (tmp_path / "else").mkdir()
    put_in_cache(cache, "some/thing", tmp_path / "else")
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if "  " in line}
    assert "bundled (StableDiffusionPipeline)" in rows["mini-image"]
    assert "MB" in rows["mini-image"]
    assert "SD-Turbo (StableDiffusionPipeline)" in rows["stabilityai/sd-turbo"]
    assert rows["stabilityai/sd-turbo"].endswith("sai-nc")
    assert "autoencoder (AutoencoderTiny)" in rows["madebyollin/taesd"]
    assert "video (Wan)" in rows["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    assert any(line.startswith("Video models by name: ") and "self-forcing" in line for line in lines)
    assert "not usable as a model: no model_index.json" in rows["some/thing"]


def test_where_names_both_folders(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("where") == 0
    out = capsys.readouterr().out
    assert str(hub.BUNDLED_FOLDER) in out
    assert str(cache) in out
    assert "HF_HOME" in out


def test_download_of_a_bundled_model_is_done_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("download", "mini-image") == 0
    assert "is bundled with Zoetrope" in capsys.readouterr().out


def test_download_errors_are_clear() -> None:
    with pytest.raises(ModelError, match=r"'sd-turbo' is not a hub id\. Give owner/name"):
        run("download", "sd-turbo")
    for kind in ("model", "lora", "autoencoder"):
        with pytest.raises(HubUnreachableError, match="cannot be reached"):
            run("download", "stabilityai/sd-turbo", "--kind", kind)


def test_listing_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys, argparse; from app.cli import models; p = argparse.ArgumentParser();"
        "models.add_parser(p.add_subparsers()); o = p.parse_args(['models']); o.run(o);"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_download_fetches_what_is_needed_once_and_says_what_it_is(tmp_path: Path) -> None:
    """With a minimal hub, in a separate process: huggingface_hub reads HF_ENDPOINT when it is imported."""
    source = tiny_sd_turbo(tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: sai-nc\n---\n", encoding="utf-8")
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (source / "whole.safetensors").write_bytes(b"not needed")
    code = (
        "import sys, argparse; from app.cli import models; p = argparse.ArgumentParser();"
        "models.add_parser(p.add_subparsers());"
        "o = p.parse_args(['models', 'download', sys.argv[1]]); sys.exit(o.run(o))"
    )
    with hub_of("owner/turbo", source) as (endpoint, fetched):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", code, "owner/turbo"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        missing = subprocess.run(
            [sys.executable, "-c", code, "owner/gone"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Downloading owner/turbo" in done.stdout
    assert "owner/turbo is a SD-Turbo (StableDiffusionPipeline) model; licence: sai-nc" in done.stdout
    assert "100%" in done.stderr  # the progress bar
    assert len(fetched) == len(set(fetched))
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not {"unet/diffusion_pytorch_model.bin", "whole.safetensors"} & set(fetched)
    snapshot = tmp_path / "home" / "hub" / "models--owner--turbo" / "snapshots" / COMMIT
    assert hub.is_complete(snapshot)
    assert "ModelNotFoundError: There is no model 'owner/gone'" in missing.stderr
