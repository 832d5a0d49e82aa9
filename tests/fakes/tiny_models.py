"""Builds small models with random weights in the published layouts: SD 1.5, SD-Turbo and SDXL-Turbo in miniature.

Class names, sub-folders, scheduler configurations and file names are those of the published models; widths are small.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
SD15_SCHEDULER = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **_BETAS}
TURBO_SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", **_BETAS}
XL_TURBO_SCHEDULER = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing", **_BETAS}


def tiny_sd15(folder: Path, *, scheduler: dict[str, Any] | None = None) -> Path:
    """Write a miniature SD 1.5: one text encoder, AutoencoderKL, epsilon prediction."""
    torch.manual_seed(1)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler or SD15_SCHEDULER)
    _tokenizer(folder / "tokenizer", pad=_EOS)
    CLIPTextModel(_text_config(32, 2, "quick_gelu")).save_pretrained(folder / "text_encoder")
    _unet(folder / "unet", cross_attention_dim=32)
    tiny_kl().save_pretrained(folder / "vae")
    _index(folder, "StableDiffusionPipeline", ("text_encoder",))
    return folder


def tiny_sd_turbo(folder: Path) -> Path:
    """Write a miniature SD-Turbo: GELU text encoder, linear projections, heads per block, Euler with trailing
    timesteps."""
    torch.manual_seed(2)
    write_json(folder / "scheduler" / "scheduler_config.json", TURBO_SCHEDULER)
    _tokenizer(folder / "tokenizer", pad="!")
    CLIPTextModel(_text_config(48, 3, "gelu")).save_pretrained(folder / "text_encoder")
    _unet(folder / "unet", cross_attention_dim=48, attention_head_dim=[2, 4], use_linear_projection=True)
    tiny_kl().save_pretrained(folder / "vae")
    _index(folder, "StableDiffusionPipeline", ("text_encoder",))
    return folder


def tiny_sdxl_turbo(folder: Path) -> Path:
    """Write a miniature SDXL-Turbo: two text encoders, pooled prompt and sizes as added conditions."""
    torch.manual_seed(3)
    write_json(folder / "scheduler" / "scheduler_config.json", XL_TURBO_SCHEDULER)
    _tokenizer(folder / "tokenizer", pad=_EOS)
    _tokenizer(folder / "tokenizer_2", pad="!")
    CLIPTextModel(_text_config(32, 3, "quick_gelu")).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(_text_config(48, 3, "gelu", 40)).save_pretrained(folder / "text_encoder_2")
    _unet(
        folder / "unet",
        cross_attention_dim=80,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 40,
    )
    tiny_kl(scaling_factor=0.13025).save_pretrained(folder / "vae")
    _index(folder, "StableDiffusionXLPipeline", ("text_encoder", "text_encoder_2"), force_zeros_for_empty_prompt=True)
    return folder


def tiny_kl(**config: Any) -> AutoencoderKL:
    """Return an AutoencoderKL with factor 8."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        **config,
    )


def tiny_taesd(folder: Path) -> Path:
    """Write a narrow autoencoder in TAESD's layout: four blocks, factor 8."""
    torch.manual_seed(4)
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(folder)
    return folder


def write_json(file: Path, content: object) -> None:
    """Write `content` as JSON, creating parent folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def rename_keys(file: Path, renamed: dict[str, str], added: dict[str, torch.Tensor] | None = None) -> None:
    """Rename keys of a .safetensors file: the longest matching prefix is replaced."""
    state = {}
    for key, value in load_file(file).items():
        start = max((old for old in renamed if key.startswith(old)), key=len, default=None)
        state[key if start is None else renamed[start] + key[len(start) :]] = value
    save_file({**state, **(added or {})}, file, metadata={"format": "pt"})


def _text_config(width: int, layers: int, act: str, projection: int = 32) -> CLIPTextConfig:
    size = len(_vocabulary())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=projection,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=0,
    )


def _vocabulary() -> dict[str, int]:
    letters = string.punctuation + string.ascii_lowercase + string.digits
    symbols = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", _BOS, _EOS]
    return {symbol: index for index, symbol in enumerate(symbols)}


def _tokenizer(folder: Path, *, pad: str) -> None:
    """Write a tokenizer in the layout of the published models: vocab.json and merges.txt, no tokenizer.json."""
    write_json(folder / "vocab.json", _vocabulary())
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special},
    )


def _unet(folder: Path, **config: Any) -> None:
    settings = {"attention_head_dim": 4, **config}
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        **settings,
    ).save_pretrained(folder)


def _index(folder: Path, pipeline_class: str, text_encoders: tuple[str, ...], **extra: object) -> None:
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    index: dict[str, object] = {
        "_class_name": pipeline_class,
        "_diffusers_version": "0.21.4",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **extra,
    }
    classes = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    for name in text_encoders:
        index[name] = ["transformers", classes[name]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    write_json(folder / "model_index.json", index)
