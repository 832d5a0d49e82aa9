"""Owns the sizes of a Wan transformer and which of its variants the video engine runs. Independent of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from pipelines.core.errors import ModelLayoutError

_IMAGE_KEYS = ("image_embedder", "add_k_proj", "add_v_proj", "norm_added_k", "norm_added_q")
_IMAGE_FIELDS = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
_USE_T2V = "Use a text-to-video variant: it takes a first image as latents."


@dataclass(frozen=True, slots=True, kw_only=True)
class WanConfig:
    """Sizes, named as in diffusers' WanTransformer3DModel; the defaults are Wan 2.1 T2V 1.3B.

    patch_size: latent frames, rows and columns per token; always one frame, as each frame has its own timestep.
    freq_dim: width of a timestep's sinusoid. text_len: tokens of a prompt, padding included.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 12
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    ffn_dim: int = 8960
    num_layers: int = 30
    cross_attn_norm: bool = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ModelLayoutError(
                    f"The transformer's {field.name} is {value!r}.", "Give a whole number of at least 1."
                )
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ModelLayoutError(
                f"The transformer's patch_size is {self.patch_size}.",
                "Causal generation needs patches of one latent frame: (1, rows, columns).",
            )
        if self.attention_head_dim % 2 or self.attention_head_dim < 8:
            raise ModelLayoutError(
                f"The transformer's attention_head_dim is {self.attention_head_dim}.",
                "Rotary positions in three axes need an even number of at least 8.",
            )
        if self.freq_dim % 2:
            raise ModelLayoutError(f"The transformer's freq_dim is {self.freq_dim}.", "It must be even.")

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes from diffusers' transformer/config.json; other entries (class name, rope_max_seq_len) are
        ignored.

        Raises ModelLayoutError for image-to-video variants with an image encoder, and for other norms of queries.
        """
        for name in _IMAGE_FIELDS:
            if config.get(name) is not None:
                raise ModelLayoutError(
                    f"This is an image-to-video transformer with an image encoder ({name} = {config[name]}).", _USE_T2V
                )
        norm = config.get("qk_norm", "rms_norm_across_heads")
        if norm != "rms_norm_across_heads":
            raise ModelLayoutError(
                f"The transformer's qk_norm is {norm!r}.", "Only rms_norm_across_heads is supported."
            )
        known = {field.name for field in fields(cls)} & config.keys()
        values = {name: config[name] for name in known}
        if "patch_size" in values:
            values["patch_size"] = tuple(values["patch_size"])
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", 16)
        return cls(**values)


def refuse_image_weights(names: Iterable[str]) -> None:
    """Raise ModelLayoutError if parameter names belong to an image-to-video variant with an image encoder."""
    extra = [name for name in names if any(key in name for key in _IMAGE_KEYS)]
    if extra:
        raise ModelLayoutError(
            f"These are weights of an image-to-video transformer with an image encoder: {extra[0]} and "
            f"{len(extra) - 1} more.",
            _USE_T2V,
        )
