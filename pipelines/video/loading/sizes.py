"""Owns the sizes of a Wan 2.1 transformer as the shapes of its weights tell them. Knows no values and no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipelines.core.errors import ModelLayoutError
from pipelines.video.wan.config import WanConfig

from .checkpoint_keys import is_original, strip, to_diffusers

_HEAD_DIM = 128


def config_of(shapes: Mapping[str, tuple[int, ...]], beside: Mapping[str, Any], source: str) -> WanConfig:
    """The configuration of the transformer that the weights of a file belong to.

    shapes: published name -> shape. beside: the configuration that lies with it, by diffusers' names, or empty; it
    tells the heads' width, which no shape does, and is left aside where it is of another width (a 14B checkpoint beside
    a 1.3B folder). Raises ModelLayoutError for variants with further inputs and for weights that are not whole.
    """
    bare = {strip(name): shape for name, shape in shapes.items()}
    original = is_original(bare)
    named = {to_diffusers(name) if original else name: shape for name, shape in bare.items()}

    def shape(name: str) -> tuple[int, ...]:
        if name not in named:
            raise ModelLayoutError(f"{source} lacks {name}.", "The file is not whole: download it again.")
        return named[name]

    patch = shape("patch_embedding.weight")
    dim = patch[0]
    told: dict[str, Any] = {
        "patch_size": (patch[2], patch[3], patch[4]),
        "in_channels": patch[1],
        "out_channels": shape("proj_out.weight")[0] // math.prod(patch[2:]),
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "ffn_dim": shape("blocks.0.ffn.net.0.proj.weight")[0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in named if name and name.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in named,
    }
    _refuse_variants(told, dim, source)
    width = _head_dim(beside, dim, source)
    others = {name: beside[name] for name in ("eps", "text_len") if name in beside}
    return WanConfig(num_attention_heads=dim // width, attention_head_dim=width, **told, **others)


def _refuse_variants(told: Mapping[str, Any], dim: int, source: str) -> None:
    inputs, outputs = told["in_channels"], told["out_channels"]
    if inputs != outputs:
        raise ModelLayoutError(
            f"{source} takes {inputs} channels and gives {outputs}: it is a variant with a picture or a control beside "
            "the latents (I2V, inpainting, Fun-Control).",
            "Use a text-to-video checkpoint: these streams take a first picture too.",
        )
    if inputs == 48:
        raise ModelLayoutError(
            f"{source} has 48 latent channels: it is made on Wan 2.2 TI2V 5B (as LongLive 2 is), not on Wan 2.1.",
            "Use a checkpoint made on Wan 2.1; docs/video-models.md lists the known ones.",
        )


def _head_dim(beside: Mapping[str, Any], dim: int, source: str) -> int:
    heads, width = beside.get("num_attention_heads"), beside.get("attention_head_dim")
    if heads and width and int(heads) * int(width) == dim:
        return int(width)
    if dim % _HEAD_DIM:
        raise ModelLayoutError(
            f"{source} is {dim} wide, which is no multiple of Wan's heads of {_HEAD_DIM}, and no configuration beside "
            "it tells the width of its heads.",
            "Put its config.json with num_attention_heads and attention_head_dim beside it.",
        )
    return _HEAD_DIM
