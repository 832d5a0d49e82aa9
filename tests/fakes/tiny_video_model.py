"""Builds small video models with random weights in diffusers' Wan 2.1 layout, for tests that load one by path.

Class names, sub-folders, file names and the scheduler's configuration are those of the published folders; widths are
small: 2 layers, 2 heads of 16, 32x48 pixels (4x6 latents, 2x3 tokens per frame), 512 rows of text of width 32.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

from pipelines.video.codecs.tiny import TinyVideoAutoencoder
from pipelines.video.codecs.tiny_layers import TinyCodecConfig
from pipelines.video.wan.actions import ActionEmbedder, save_actions

WIDTH_PX, HEIGHT_PX = 48, 32
TEXT_DIM = 32
TINY_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
}
TINY_AUTOENCODER: dict[str, Any] = {"base_dim": 8, "num_res_blocks": 1}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
_CLASSES = {
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "vae": ("diffusers", "AutoencoderKLWan"),
}


def tiny_video_model(
    folder: Path,
    *,
    family: str | None = "self-forcing",
    seed: int = 1,
    tiny_vae: bool = False,
    actions: bool = False,
    **transformer: Any,
) -> Path:
    """Write a complete model folder and return it.

    family: how the weights were trained, written to zoetrope.json with the small size; None leaves the folder as
    published, a plain Wan 2.1 base model. tiny_vae: add a tiny autoencoder, which loading then prefers. actions: add a
    folder of actions. transformer: changes of TINY_TRANSFORMER.
    """
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    tiny_tokenizer(folder / "tokenizer")
    tiny_transformer(seed=seed, **transformer).save_pretrained(folder / "transformer")
    tiny_autoencoder(seed=seed + 1).save_pretrained(folder / "vae")
    tiny_text_encoder(seed=seed + 2).save_pretrained(folder / "text_encoder")
    if tiny_vae:
        tiny_taew(folder / "tiny_vae" / "taew2_1.safetensors", seed=seed + 3)
    if actions:
        sizes = {**TINY_TRANSFORMER, **transformer}
        save_actions(random_actions(sizes["num_attention_heads"] * sizes["attention_head_dim"]), folder / "actions")
    index = {name: list(pair) for name, pair in _CLASSES.items()}
    _write_json(
        folder / "model_index.json", {"_class_name": "WanPipeline", "_diffusers_version": "0.33.0.dev0", **index}
    )
    if family is not None:
        settings = {"family": family, "width": WIDTH_PX, "height": HEIGHT_PX, "licence": "Apache-2.0 (random weights)"}
        _write_json(folder / "zoetrope.json", settings)
    return folder


def tiny_transformer(*, seed: int = 1, **config: Any) -> WanTransformer3DModel:
    """Return diffusers' own transformer, float32, for inference; the random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**TINY_TRANSFORMER, **config}).eval().requires_grad_(False)


def random_actions(dim: int, *, seed: int = 5, scale: float = 3.0) -> ActionEmbedder:
    """Return an embedder with weights large enough for every action to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedder = ActionEmbedder(dim)
    for parameter in embedder.parameters():
        parameter.data *= scale
    return embedder.eval().requires_grad_(False)


def tiny_autoencoder(*, seed: int = 2, **config: Any) -> AutoencoderKLWan:
    """Return diffusers' own autoencoder, narrow: 16 latent channels, factor 8 in space and 4 in time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLWan(**{**TINY_AUTOENCODER, **config}).eval().requires_grad_(False)


def tiny_text_encoder(*, seed: int = 3) -> UMT5EncoderModel:
    """Return a miniature UMT5 encoder: width TEXT_DIM, the vocabulary of `tiny_tokenizer`."""
    config = UMT5Config(
        vocab_size=len(_vocabulary()),
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval().requires_grad_(False)


def tiny_taew(file: Path, *, seed: int = 4) -> Path:
    """Write a narrow tiny autoencoder's random weights, by the published names of taew2_1."""
    config = TinyCodecConfig(decoder_channels=(16, 8, 8, 8), encoder_channels=(8, 8, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = TinyVideoAutoencoder(config).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)
    return file


def tiny_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json: a Unigram tokenizer of letters and a few words. </s> ends a text, <pad> is row 0."""
    tokenizer = Tokenizer(Unigram(_vocabulary(), unk_id=2, byte_fallback=False))
    tokenizer.normalizer = NFKC()
    tokenizer.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **special},
    )
    return folder


def tiny_vocabulary_size() -> int:
    """Return the number of rows of the text encoder's embedding."""
    return len(_vocabulary())


def _vocabulary() -> list[tuple[str, float]]:
    letters = string.ascii_letters + string.digits + string.punctuation
    words = ("▁a", "▁cat", "▁on", "▁the", "▁table")
    return [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -4.0) for letter in letters),
        *((word, -3.0) for word in words),
    ]


def _write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
