"""Owns the files of assets/models/mini-image: the stock diffusers layout, 16-bit weights and world.json.

Independent of training; the model card is written by train.card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.modeling_clip import CLIPTextModel

from .networks import IMAGE_SIZE_PX, make_scheduler

MAX_SIZE_MIB = 14.0
_PIPELINE_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "LCMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


def export_model(
    folder: Path,
    *,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    tokenizer: Any,
    world: Mapping[str, Any],
) -> float:
    """Write the pipeline's folders with float16 weights and world.json; return the size of folder in MiB.

    Raises ValueError if the folder is larger than MAX_SIZE_MIB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = torch.float16
    vae.to(dtype=half).save_pretrained(folder / "vae", safe_serialization=True)
    unet.to(dtype=half).save_pretrained(folder / "unet", safe_serialization=True)
    text_encoder.to(dtype=half).save_pretrained(folder / "text_encoder", safe_serialization=True)
    load_as_float32(folder / "text_encoder" / "config.json")
    make_scheduler().save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer", tokenizer)
    write_json(folder / "model_index.json", _PIPELINE_INDEX)
    write_json(folder / "world.json", {"size_px": IMAGE_SIZE_PX, **world})
    size = folder_mib(folder)
    if size > MAX_SIZE_MIB:
        raise ValueError(
            f"{folder} holds {size:.2f} MiB, more than {MAX_SIZE_MIB}: shrink UNetShape or the autoencoder"
        )
    return size


def folder_mib(folder: Path) -> float:
    """Total size of the files under folder, in MiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def load_as_float32(config_file: Path) -> None:
    """Make transformers load the text encoder as diffusers loads the rest: float32 unless the caller says otherwise."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    write_json(config_file, {**config, "dtype": "float32"})


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write tokenizer.json as transformers 5 does, plus vocab.json and merges.txt for readers of the older layout."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines: Sequence[str] = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write content as readable JSON; creates the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
