"""Owns the names in the files of an original Wan 2.1 folder: Wan2.1_VAE.pth and the UMT5 encoder's .pth.

Maps them to the names of diffusers' AutoencoderKLWan and transformers' UMT5EncoderModel. Works on names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .checkpoint_keys import strip

_RESIDUAL: Mapping[str, str] = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
_MIDDLE: Mapping[str, str] = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_TOP: Mapping[str, str] = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{f"{side}.conv1": f"{side}.conv_in" for side in ("encoder", "decoder")},
    **{f"{side}.head.0": f"{side}.norm_out" for side in ("encoder", "decoder")},
    **{f"{side}.head.2": f"{side}.conv_out" for side in ("encoder", "decoder")},
}
_STAGE = re.compile(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)")
_UMT5_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_UMT5_TOP: Mapping[str, str] = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}
_UMT5_IN_BLOCK: Mapping[str, str] = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    **{f"attn.{name}.weight": f"layer.0.SelfAttention.{name}.weight" for name in "qkvo"},
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def is_original_vae(names: Iterable[str]) -> bool:
    """Whether names are those of Wan2.1_VAE.pth rather than of AutoencoderKLWan."""
    return any(".middle." in name for name in names)


def residual_blocks(names: Iterable[str]) -> int:
    """Return the number of residual blocks in a stage of the encoder: the index of its first downsampling layer."""
    indices = [
        int(found[3]) for name in names if (found := _STAGE.fullmatch(strip(name))) and found[4].startswith("resample.")
        if found[1] == "encoder"
    ]  # fmt: skip
    return min(indices, default=0)


def vae_to_diffusers(name: str, blocks: int = 2) -> str | None:
    """Return the AutoencoderKLWan name of a name in Wan2.1_VAE.pth; None for unknown names. blocks: see
    `residual_blocks`."""
    bare = strip(name)
    stage = _STAGE.fullmatch(bare)
    if stage is None:
        module, _, parameter = bare.rpartition(".")
        return f"{_VAE_TOP[module]}.{parameter}" if module in _VAE_TOP else None
    side, part, layer, rest = stage.groups()
    inner = _inside(rest)
    if part == "middle":
        return f"{side}.mid_block.{_MIDDLE[layer]}.{inner}" if layer in _MIDDLE else None
    if part == "downsamples":
        return f"{side}.down_blocks.{layer}.{inner}"
    # A stage of the decoder has one residual block more than the encoder's, then its upsampling.
    block, index = divmod(int(layer), blocks + 2)
    if index <= blocks:
        return f"{side}.up_blocks.{block}.resnets.{index}.{inner}"
    return f"{side}.up_blocks.{block}.upsamplers.0.{inner}"


def umt5_to_transformers(name: str) -> str | None:
    """Return the UMT5EncoderModel name of a name in models_t5_umt5-xxl-enc-bf16.pth; None for unknown names."""
    bare = strip(name)
    block = _UMT5_BLOCK.fullmatch(bare)
    if block is None:
        return _UMT5_TOP.get(bare)
    index, rest = block.groups()
    target = _UMT5_IN_BLOCK.get(rest)
    return None if target is None else f"encoder.block.{index}.{target}"


def _inside(rest: str) -> str:
    """Map names inside a block: residual.0 -> norm1 and so on, shortcut -> conv_shortcut; others are unchanged."""
    first, _, more = rest.partition(".")
    if first == "shortcut":
        return f"conv_shortcut.{more}"
    index, _, parameter = more.partition(".")
    if first == "residual" and index in _RESIDUAL:
        return f"{_RESIDUAL[index]}.{parameter}"
    return rest
