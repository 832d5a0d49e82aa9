"""Recognition of model folders: every error is named, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.core.errors import ModelLayoutError, UnsafeWeightsError
from pipelines.files.layout import Component, find_weights, read_layout
from pipelines.image.loading.presets import LCM_LORA_SD15, ModelFacts, choose_preset
from tests.fakes.tiny_models import SD15_SCHEDULER, TURBO_SCHEDULER, XL_TURBO_SCHEDULER, write_json


def make_folder(
    folder: Path, *, xl: bool = False, scheduler: dict[str, object] | None = None, width: int = 768
) -> Path:
    """Create a model folder with configurations and empty weight files, enough to be recognised."""
    index: dict[str, object] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if xl:
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    for name in index:
        if name.startswith("_"):
            continue
        write_json(folder / name / "config.json", {"cross_attention_dim": width} if name == "unet" else {})
        stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
        (folder / name / f"{stem}.safetensors").touch()
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler or SD15_SCHEDULER)
    return folder


def test_a_folder_is_recognised(tmp_path: Path) -> None:
    layout = read_layout(make_folder(tmp_path, xl=True))
    assert layout.family.name == "Stable Diffusion XL"
    assert [part.name for part in layout.weighted] == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert [part.folder.name for part in layout.tokenizers] == ["tokenizer", "tokenizer_2"]


@pytest.mark.parametrize(
    "missing",
    ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "text_encoder/config.json"],
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    make_folder(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelLayoutError, match=f"{missing} is missing"):
        read_layout(tmp_path)


def test_other_faults_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    index_file = tmp_path / "model_index.json"
    index = json.loads(index_file.read_text(encoding="utf-8"))
    for changed, message in (
        ({"_class_name": "FluxPipeline"}, "FluxPipeline, which Zoetrope cannot run. Known classes: StableDiffusion"),
        ({"unet": ["diffusers", "UNet3D"]}, "UNet3D for 'unet'"),
        ({"vae": [None, None]}, "no entry 'vae'"),
        ({"tokenizer": ["transformers", "CLIPTokenizer"], "_gone": "tokenizer"}, "folder .*tokenizer is missing"),
    ):
        write_json(index_file, {**index, **changed})
        if changed.get("_gone"):
            (tmp_path / "tokenizer" / "config.json").unlink()
            (tmp_path / "tokenizer" / "model.safetensors").unlink()
            (tmp_path / "tokenizer").rmdir()
        with pytest.raises(ModelLayoutError, match=message):
            read_layout(tmp_path)
    index_file.write_text("{", encoding="utf-8")
    with pytest.raises(ModelLayoutError, match="not valid JSON"):
        read_layout(tmp_path)
    write_json(index_file, [])
    with pytest.raises(ModelLayoutError, match="JSON object"):
        read_layout(tmp_path)


def test_single_files_are_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.touch()
    with pytest.raises(UnsafeWeightsError, match=r"model\.ckpt is a pickle.*--allow-pickle"):
        read_layout(checkpoint)
    whole = tmp_path / "model.safetensors"
    whole.touch()
    with pytest.raises(ModelLayoutError, match=r"single file.*from_single_file"):
        read_layout(whole)


def test_weights_are_chosen_by_format_and_variant(tmp_path: Path) -> None:
    unet = Component(name="unet", folder=tmp_path, class_name="UNet2DConditionModel", config={})
    with pytest.raises(ModelLayoutError, match=r"diffusion_pytorch_model\.safetensors is missing"):
        find_weights(unet)
    pickled = tmp_path / "diffusion_pytorch_model.bin"
    pickled.touch()
    with pytest.raises(UnsafeWeightsError, match="--allow-pickle"):
        find_weights(unet)
    assert find_weights(unet, allow_pickle=True).pickled
    half = tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    half.touch()
    assert find_weights(unet, allow_pickle=True).files == (half,)
    whole = tmp_path / "diffusion_pytorch_model.safetensors"
    whole.touch()
    assert (find_weights(unet).files, find_weights(unet).variant) == ((whole,), None)
    assert find_weights(unet, prefer_half=True).variant == "fp16"


def test_shards_must_all_be_there(tmp_path: Path) -> None:
    unet = Component(name="unet", folder=tmp_path, class_name="UNet2DConditionModel", config={})
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    write_json(
        tmp_path / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": names[0], "b": names[1]}}
    )
    (tmp_path / names[0]).touch()
    with pytest.raises(ModelLayoutError, match=f"{names[1]} is missing"):
        find_weights(unet)
    (tmp_path / names[1]).touch()
    assert [file.name for file in find_weights(unet).files] == names


@pytest.mark.parametrize(
    ("xl", "scheduler", "width", "loras", "bundled", "expected"),
    [
        (False, SD15_SCHEDULER, 128, (), True, "bundled"),
        (False, TURBO_SCHEDULER, 1024, (), False, "SD-Turbo"),
        (True, XL_TURBO_SCHEDULER, 2048, (), False, "SDXL-Turbo"),
        (False, SD15_SCHEDULER, 768, (), False, "Stable Diffusion 1"),
        (False, SD15_SCHEDULER, 768, (LCM_LORA_SD15,), False, "Stable Diffusion with LCM"),
        (False, {"_class_name": "LCMScheduler"}, 768, (), False, "Stable Diffusion with LCM"),
        (True, {"_class_name": "LCMScheduler"}, 2048, (), False, "SDXL with LCM"),
        (True, {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, 2048, (), False, "SDXL"),
        (False, {"_class_name": "DDIMScheduler"}, 1024, (), False, "Stable Diffusion"),
    ],
)
def test_presets_follow_what_the_folder_says(
    tmp_path: Path,
    xl: bool,
    scheduler: dict[str, object],
    width: int,
    loras: tuple[str, ...],
    bundled: bool,
    expected: str,
) -> None:
    layout = read_layout(make_folder(tmp_path, xl=xl, scheduler=scheduler, width=width))
    preset = choose_preset(ModelFacts(layout=layout, bundled=bundled, lora_ids=loras))
    assert preset.name == expected
    distilled = "Turbo" in expected or "LCM" in expected or bundled
    assert bool(preset.notice) is not distilled
