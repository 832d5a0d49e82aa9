"""Owns the files of assets/models/mini-video: diffusers' Wan layout, Zoetrope's additions, 16-bit weights.

Independent of training; the model card is written by train.video.card.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipelines.video.loading.families import MINI_VIDEO
from pipelines.video.wan.actions import save_actions
from pipelines.video.wan.transformer import CausalWanTransformer
from train.export import folder_mib, load_as_float32, write_json

from .codecs import Codecs
from .networks import TEXT_TOKENS, VIDEO_SIZE_PX, make_stock_transformer
from .tokenizer import save_tokenizer

if TYPE_CHECKING:
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

MAX_SIZE_MIB = 32.0
_VERSION = "0.42.1"
_PIPELINE_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": _VERSION,
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
ACTIONS = "action_embedder."


def export_model(
    folder: Path,
    *,
    codecs: Codecs,
    transformer: CausalWanTransformer,
    text_encoder: UMT5EncoderModel,
    tokenizer: Any,
    card: str,
    world: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
    gains: Sequence[float] | None = None,
) -> float:
    """Write the whole model folder with float16 weights; return its size in MiB. The networks are not modified.

    transformer: without an action_embedder there is no folder actions/. card: Markdown of README.md. world: the prompt
    vocabulary, for world.json.
    preset: overrides of the family's preset in zoetrope.json, by the names of VideoPreset. gains: of the actions, for
    inference (pipelines.video.wan.actions.save_actions). Raises ValueError if the folder is larger than MAX_SIZE_MIB.
    """
    _save_transformer(transformer, folder, gains)
    codecs.write_moments()
    _save(codecs.vae, folder / "vae")
    _save_tiny(codecs, folder / "tiny_vae")
    _save(text_encoder, folder / "text_encoder")
    load_as_float32(folder / "text_encoder" / "config.json")
    save_tokenizer(tokenizer, folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config())
    write_json(folder / "model_index.json", _PIPELINE_INDEX)
    write_json(folder / "zoetrope.json", settings(preset or {}))
    if world is not None:
        write_json(folder / "world.json", {"size_px": VIDEO_SIZE_PX, **world})
    (folder / "README.md").write_text(card, encoding="utf-8")
    size = folder_mib(folder)
    if size > MAX_SIZE_MIB:
        raise ValueError(f"{folder} holds {size:.2f} MiB, more than {MAX_SIZE_MIB}: shrink train/video/networks.py")
    return size


def scheduler_config() -> dict[str, Any]:
    """Flow matching with the preset's shift, for diffusers' own pipeline; Zoetrope uses the family's own."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": MINI_VIDEO.shift,
    }


def settings(preset: Mapping[str, Any]) -> dict[str, Any]:
    """zoetrope.json: describes the weights."""
    content = {
        "family": "mini-video",
        "width": VIDEO_SIZE_PX,
        "height": VIDEO_SIZE_PX,
        "licence": "Apache-2.0",
        "text_tokens": TEXT_TOKENS,
    }
    return {**content, **({"preset": dict(preset)} if preset else {})}


def _save_transformer(transformer: CausalWanTransformer, folder: Path, gains: Sequence[float] | None) -> None:
    """Write the stock weights to transformer/, those of the actions to actions/."""
    stock = make_stock_transformer()
    state = {name: value for name, value in transformer.state_dict().items() if not name.startswith(ACTIONS)}
    stock.load_state_dict(state)
    _save(stock, folder / "transformer")
    if transformer.action_embedder is not None:
        save_actions(_half(transformer.action_embedder), folder / "actions", gains)


def _save_tiny(codecs: Codecs, folder: Path) -> None:
    config = codecs.tiny.config
    write_json(folder / "config.json", {"_class_name": "TinyVideoAutoencoder", **asdict(config)})
    state = {name: value.detach().cpu().half().contiguous() for name, value in codecs.tiny.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _save(module: Any, folder: Path) -> None:
    """save_pretrained of a float16 copy."""
    _half(module).save_pretrained(folder, safe_serialization=True)


def _half(module: Any) -> Any:
    """A float16 copy on the CPU; parameter by parameter, since diffusers' own conversion keeps some in float32."""
    clone: nn.Module = copy.deepcopy(module).cpu()
    with torch.no_grad():
        for tensor in (*clone.parameters(), *clone.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.half()
    return clone
