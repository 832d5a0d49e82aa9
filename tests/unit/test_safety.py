"""The published safety checker: loaded with the model unless disabled, with the results of stock diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pipelines.core.errors import ModelLayoutError
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.model import ImageModel
from tests.fakes.tiny_models import rename_keys, tiny_sd15, write_json


def model_with_checker(folder: Path) -> Path:
    """Write a miniature SD 1.5 with a checker whose thresholds separate black pictures from others."""
    tiny_sd15(folder)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    torch.manual_seed(8)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    black = processor([np.zeros((40, 40, 3), np.uint8)], return_tensors="pt").pixel_values
    with torch.no_grad():
        checker.concept_embeds.copy_(checker.visual_projection(checker.vision_model(black)[1]).expand(17, -1))
        checker.concept_embeds_weights.fill_(0.999)
    checker.save_pretrained(folder / "safety_checker")
    processor.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    write_json(folder / "model_index.json", index)
    return folder


def load(folder: Path, *, safety: bool = True) -> ImageModel:
    options = LoadOptions(device="cpu", dtype="float32", safety=safety, notice=lambda text: None)
    return load_image_model(str(folder), options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with_checker(tmp_path_factory.mktemp("models") / "sd15")


def test_marked_pictures_are_told_apart_and_left_alone(folder: Path) -> None:
    model = load(folder)
    assert model.safety is not None
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    images = np.stack([np.zeros_like(noise), noise, np.zeros_like(noise)])
    before = images.copy()
    assert model.safety.check(images) == [True, False, True]
    assert np.array_equal(images, before)


def test_it_can_be_refused_and_may_be_absent(folder: Path, tmp_path: Path) -> None:
    assert load(folder, safety=False).safety is None
    assert load(tiny_sd15(tmp_path)).safety is None


def test_published_key_names_are_read(folder: Path, tmp_path: Path) -> None:
    """The published checker nests the vision network one level deeper and stores position_ids."""
    old = model_with_checker(tmp_path)
    file = old / "safety_checker" / "model.safetensors"
    inner = {key.split(".")[1] for key in load_file(file) if key.startswith("vision_model.")}
    if inner != {"vision_model"}:
        rename_keys(
            file,
            {"vision_model.": "vision_model.vision_model."},
            {"vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]},
        )
    checker = load(old).safety
    assert checker is not None
    assert checker.check(np.zeros((1, 40, 40, 3), np.uint8)) == [True]


def test_a_missing_processor_is_named(tmp_path: Path) -> None:
    broken = model_with_checker(tmp_path)
    (broken / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(ModelLayoutError, match=r"preprocessor_config\.json is missing"):
        load(broken)
