"""Owns how a Wan 2.1 transformer's sizes follow from the shapes of its weights. Independent of values and files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipelines.core.errors import ModelLayoutError
from pipelines.video.wan.config import WanConfig

from .checkpoint_keys import is_original, strip, to_diffusers

_HEAD_DIM = 128


def config_of(shapes: Mapping[str, tuple[int, ...]], beside: Mapping[str, Any], source: str) -> WanConfig:
    """Infer the configuration of the transformer that the weights of a file belong to.

    shapes: published name -> shape. beside: the accompanying configuration, by diffusers' names, or empty. It gives the
    width of heads, which no shape does; that is ignored if it does not match (a 14B checkpoint with a 1.3B folder).
    Raises ModelLayoutError for variants with further inputs and for incomplete weights.
    """
    bare = {strip(name): shape for name, shape in shapes.items()}
    original = is_original(bare)
    named = {to_diffusers(name) if original else name: shape for name, shape in bare.items()}

    def shape(name: str) -> tuple[int, ...]:
        if name not in named:
            raise ModelLayoutError(f"{source} lacks {name}.", "The file is incomplete: download it again.")
        return named[name]

    patch = shape("patch_embedding.weight")
    dim = patch[0]
    sizes: dict[str, Any] = {
        "patch_size": (patch[2], patch[3], patch[4]),
        "in_channels": patch[1],
        "out_channels": shape("proj_out.weight")[0] // math.prod(patch[2:]),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")[0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in named if name and name.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in named,
    }
    _refuse_variants(sizes, dim, source)
    width = _head_dim(beside, dim, source)
    others = {name: beside[name] for name in ("eps", "text_len") if name in beside}
    return WanConfig(num_attention_heads=dim // width, attention_head_dim=width, **sizes, **others)


def _refuse_variants(sizes: Mapping[str, Any], dim: int, source: str) -> None:
    inputs, outputs = sizes["in_channels"], sizes["out_channels"]
    if inputs != outputs:
        raise ModelLayoutError(
            f"{source} takes {inputs} channels and returns {outputs}: it is a variant with a picture or a control "
            "besides the latents (I2V, inpainting, Fun-Control).",
            "Use a text-to-video checkpoint: these streams also take a first picture.",
        )
    if inputs == 48:
        raise ModelLayoutError(
            f"{source} has 48 latent channels: it is based on Wan 2.2 TI2V 5B (as LongLive 2 is), not on Wan 2.1.",
            "Use a checkpoint based on Wan 2.1; docs/video-models.md lists the supported ones.",
        )


def _head_dim(beside: Mapping[str, Any], dim: int, source: str) -> int:
    heads, width = beside.get("num_attention_heads"), beside.get("attention_head_dim")
    if heads and width and int(heads) * int(width) == dim:
        return int(width)
    if dim % _HEAD_DIM:
        raise ModelLayoutError(
            f"{source} is {dim} wide, which is not a multiple of Wan's head width {_HEAD_DIM}, and no configuration "
            "next to it gives the width of its heads.",
            "Put its config.json with num_attention_heads and attention_head_dim next to it.",
        )
    return _HEAD_DIM
