"""Owns how a UNet's cross-attention takes a prompt's keys and values, computed once, instead of its embeddings.

`project` turns embeddings [N, L, D] into one vector per row: keys and values [L, C] of every cross-attention layer in
turn and, where the network adds the text to its time embedding, that vector too. Exactly what the UNet would compute,
up to rounding. Independent of prompts, rings and backends.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_MULTIPLE = 8  # elements; attention kernels want rows that start at multiples of 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """widths: C of each cross-attention layer. added: length of the text's part of the time embedding, or 0."""

    widths: tuple[int, ...]
    added: int

    @property
    def per_token(self) -> int:
        return 2 * sum(self.widths)

    def size(self, tokens: int) -> int:
        """Length of a row's vector."""
        return -(-(tokens * self.per_token + self.added) // _MULTIPLE) * _MULTIPLE

    def tokens(self, size: int) -> int:
        """The inverse of `size`."""
        return (size - self.added) // self.per_token

    def start(self, layer: int, tokens: int) -> int:
        """Where the keys of a layer begin; its values follow them."""
        return 2 * tokens * sum(self.widths[:layer])


class UNetTextProjection:
    """A `TextProjection` of one UNet, whose weights it reads at every call.

    unet: a module that computes what the given one does, from the same parameters, but takes the projected text as its
    encoder_hidden_states. The given one is left as it is.
    """

    def __init__(self, unet: Any, dtype: torch.dtype) -> None:
        """dtype: of the network. There must be no `obstacle`."""
        self.dtype = dtype
        self._attentions = [module for _, module in _cross_attentions(unet)]
        self._adds = unet.add_embedding if unet.config.addition_embed_type == "text" else None
        widths = tuple(int(module.to_k.out_features) for module in self._attentions)
        added = 0 if self._adds is None else int(self._adds.proj.out_features)
        self._layout = _Layout(widths=widths, added=added)
        self.unet = same_parameters(unet)
        for index, (_, module) in enumerate(_cross_attentions(self.unet)):
            module.set_processor(_ProjectedTextProcessor(index, self._layout))
        if self._adds is not None:
            self.unet.add_embedding = _AddedText(self._layout)

    def size(self, tokens: int) -> int:
        """See `pipelines.image.model.TextProjection`."""
        return self._layout.size(tokens)

    @torch.no_grad()
    def project(self, embeds: torch.Tensor) -> torch.Tensor:
        """See `pipelines.image.model.TextProjection`."""
        text = embeds.to(self.dtype)
        parts = [part for a in self._attentions for part in (a.to_k(text).flatten(1), a.to_v(text).flatten(1))]
        parts += [] if self._adds is None else [self._adds(text)]
        projected = torch.cat(parts, dim=1)
        return functional.pad(projected, (0, self.size(embeds.shape[1]) - projected.shape[1]))


def obstacle(unet: Any) -> str | None:
    """Return why a UNet's text cannot be projected, as a clause; None if it can."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    attentions, config = _cross_attentions(unet), unet.config
    if not attentions:
        return "the network has no cross-attention"
    if config.encoder_hid_dim_type is not None:
        return f"the network changes its text embeddings first ({config.encoder_hid_dim_type})"
    if config.addition_embed_type not in (None, "text", "text_time"):
        return f"the network adds {config.addition_embed_type} to its time embedding"
    for name, module in attentions:
        if type(module.processor) is not AttnProcessor2_0:
            return f"{name} has an attention processor of its own, {type(module.processor).__name__}"
        if any(part is not None for part in (module.norm_cross, module.norm_q, module.norm_k, module.group_norm)):
            return f"{name} normalises its inputs"
        if module.added_kv_proj_dim is not None or not isinstance(module.to_k, nn.Linear):
            return f"{name} is not a plain cross-attention"
    return None


def _cross_attentions(unet: Any) -> Sequence[tuple[str, Any]]:
    """Return the cross-attention layers by name, in the order of the modules."""
    from diffusers.models.attention_processor import Attention

    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
    ]


def same_parameters(network: nn.Module) -> Any:
    """Copy a network's structure; parameters and buffers are those of the original."""
    return copy.deepcopy(network, {id(t): t for t in (*network.parameters(), *network.buffers())})


class _ProjectedTextProcessor:
    """Cross-attention to keys and values that were computed before: diffusers' AttnProcessor2_0 without them."""

    def __init__(self, layer: int, layout: _Layout) -> None:
        self._layer, self._layout = layer, layout

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states: [N, S, C]. encoder_hidden_states: the projected text [N, size]. Returns [N, S, C]."""
        assert attention_mask is None, "projected text has no mask"
        rows, width = hidden_states.shape[0], self._layout.widths[self._layer]
        tokens = self._layout.tokens(encoder_hidden_states.shape[1])
        start = self._layout.start(self._layer, tokens)
        heads = (rows, -1, attn.heads, width // attn.heads)
        key, value = (
            encoder_hidden_states[:, begin : begin + tokens * width].view(heads).transpose(1, 2)
            for begin in (start, start + tokens * width)
        )
        query = attn.to_q(hidden_states).view(heads).transpose(1, 2)
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=0.0, is_causal=False)
        seen = attn.to_out[1](attn.to_out[0](seen.transpose(1, 2).reshape(rows, -1, width).to(query.dtype)))
        result: torch.Tensor = (seen + hidden_states if attn.residual_connection else seen) / attn.rescale_output_factor
        return result


class _AddedText(nn.Module):
    """In place of the module that adds the text to the time embedding: [N, size] -> [N, added]."""

    def __init__(self, layout: _Layout) -> None:
        super().__init__()
        self._layout = layout

    def forward(self, projected: torch.Tensor) -> torch.Tensor:
        start = self._layout.tokens(projected.shape[1]) * self._layout.per_token
        return projected[:, start : start + self._layout.added]
