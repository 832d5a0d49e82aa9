"""LoRA files merged while loading a video model, and models loaded by name from the hub and its cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from pipelines.core.errors import HubUnreachableError, ModelLayoutError, ModelNotFoundError
from pipelines.files.lora_files import LoraFile
from pipelines.video.loading.source import BASE_ID
from tests.fakes.hub_server import COMMIT, hub_of
from tests.fakes.published_checkpoints import TINY, Dims, lora_state, prefixed, wan_state
from tests.fakes.tiny_video_model import tiny_transformer, tiny_video_model
from tests.fakes.video_loading import in_cache, load, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete tiny model folder without a family. Not to be modified."""
    return tiny_video_model(tmp_path_factory.mktemp("folder") / "base", family=None)


@pytest.fixture(autouse=True)
def closed_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty hub cache, and a hub address at which nobody answers."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Return a folder whose path suggests no family."""
    return tmp_path / "a" / "b" / "c" / "d" / "files"


def test_longlives_lora_beside_its_base_is_merged(base: Path, files: Path) -> None:
    state, lora = wan_state(), lora_state(rank=4)
    file = write(files / "longlive_base.pt", {"generator": prefixed(state)})
    model, said = load(file, base=str(base))
    assert "not next to longlive_base.pt" in said.text
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
        (lora_state(Dims(dim=64, ffn=128)), r"by shape \[64, 64\], the weight has \[32, 32\]"),
        (lora_state(Dims(layers=3)), r"weights that this model does not have: blocks\.2\.attn.*and 4 more"),
        ({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 32)}, "only one of the two factors"),
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


def test_a_familys_name_uses_what_the_cache_has(base: Path, files: Path, closed_hub: Path) -> None:
    with pytest.raises(HubUnreachableError, match="gdhe17/Self-Forcing is not in the cache"):
        load("self-forcing")
    write(files / "checkpoints" / "self_forcing_dmd.pt", {"generator_ema": prefixed(wan_state())})
    in_cache(closed_hub, "gdhe17/Self-Forcing", files)
    with pytest.raises(ModelNotFoundError, match=r"only a transformer"):
        load("self-forcing")
    in_cache(closed_hub, BASE_ID, base)
    for name in ("self-forcing", "gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt", "gdhe17/Self-Forcing"):
        model, said = load(name)
        assert (model.family, model.name) == ("self-forcing", name if name.endswith(".pt") else "self-forcing")
        assert "come from" in said.text
    assert load(BASE_ID)[0].family == "wan"
    for name in ("wan", "Wan-AI/Wan2.1-T2V-1.3B"):
        model, said = load(name)
        assert model.name == BASE_ID
        assert f"diffusers' layout: {BASE_ID}" in said.text


def test_a_repository_of_several_models_asks_for_a_file() -> None:
    with pytest.raises(ModelLayoutError, match=r"several models.*zhuhz22/Causal-Forcing/framewise/causal_forcing\.pt"):
        load("zhuhz22/Causal-Forcing")


def resolve_elsewhere(endpoint: str, home: Path, model: str, base: str = "") -> subprocess.CompletedProcess[str]:
    """Resolve a model's files in a separate process with the hub `endpoint`; prints checkpoint, folder and notices."""
    code = (
        "import sys; from pipelines.video.loading.source import resolve_video; said = [];"
        "found = resolve_video(sys.argv[1], base=sys.argv[2], notice=said.append);"
        "print(found.checkpoint, found.folder.folder, *said, sep='\\n')"
    )
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, model, base],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_familys_file_is_fetched_alone(base: Path, files: Path, tmp_path: Path) -> None:
    for name in ("self_forcing_dmd.pt", "self_forcing_sid.pt"):
        write(files / "checkpoints" / name, {"generator_ema": {"a": torch.zeros(1)}})
    with hub_of("gdhe17/Self-Forcing", files) as (endpoint, fetched):
        done = resolve_elsewhere(endpoint, tmp_path / "home", "self-forcing", str(base))
    assert done.returncode == 0, done.stderr
    checkpoint, folder, notice = done.stdout.splitlines()
    assert checkpoint.endswith(f"{COMMIT}/checkpoints/self_forcing_dmd.pt")
    assert folder == str(base)
    assert notice.startswith("Downloading gdhe17/Self-Forcing")
    assert fetched == ["checkpoints/self_forcing_dmd.pt"]


def test_a_base_is_fetched_without_its_transformer(base: Path, files: Path, tmp_path: Path) -> None:
    file = write(files / "model.pt", {"generator": prefixed(wan_state())})
    with hub_of(BASE_ID, base) as (endpoint, fetched):
        done = resolve_elsewhere(endpoint, tmp_path / "home", str(file), BASE_ID)
    assert done.returncode == 0, done.stderr
    assert {Path(name).parts[0] for name in fetched} == {
        "model_index.json",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
    }
    assert "tokenizer/tokenizer.json" in fetched


def test_dims_of_the_fakes_agree() -> None:
    config = tiny_transformer().config
    assert (config.ffn_dim, config.text_dim, config.freq_dim, config.num_layers) == (
        TINY.ffn,
        TINY.text,
        TINY.freq,
        TINY.layers,
    )
