"""Owns the blocks of the Wan transformer in fp8: which of their numbers are e4m3, and with which scales.

Products with e4m3 weights and activations: q, k and v as one, the query of cross-attention, and both of the MLP;
activations are quantised in the kernel of the norm or the activation before them. The two output projections keep their
dtype: they are small, and take what attention has averaged, where a few channels are large (alone they cost more
accuracy than all the others, docs/log.md). Self-attention reads e4m3 if the recipe says so. Norms, modulation,
residuals, rotation and cross-attention are computed as in the blocks that these are made from. Independent of
timesteps, schedules and how keys are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from cache.kv.store import E4M3, E4M3_MAX, converted

from .attention import AttentionBackend
from .blocks import Block, BlockContext, KeyValueView, WanBlock
from .fp8_attention import Fp8Attention, Fp8Scales
from .fp8_calibration import BlockMeans, calibrate
from .fp8_kernels import SHIFT, SHIFT_MLP, Fp8Kernels, HeadNorms, Modulation
from .fp8_products import Fp8Linear, product, quantised_linear
from .text_cache import KeysValues
from .transformer import CausalWanTransformer

_VALUE_HEADROOM = 4.0
"""By how much values may exceed the largest one of the calibration before they are clipped."""


class Fp8Weights(NamedTuple):
    """What a block computes with. norm2: weight and bias of the affine norm before cross-attention, or None."""

    qkv: Fp8Linear
    cross_query: Fp8Linear
    up: Fp8Linear
    down: Fp8Linear
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    cross_norm: torch.Tensor
    norm2: tuple[torch.Tensor, torch.Tensor] | None
    modulation: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Recipe:
    """attention: of e4m3; None: self-attention in the model's dtype. kernels: of the pieces between the products.

    plain_last: how many of the last blocks keep their products in the model's dtype: errors there reach the picture
    undamped, and two blocks of thirty cost 1 % of the speed.
    """

    attention: Fp8Attention | None
    kernels: Fp8Kernels
    plain_last: int = 2


def fp8_blocks(transformer: CausalWanTransformer, recipe: Fp8Recipe) -> tuple[Block, ...]:
    """Make all blocks of a transformer. Runs two passes of it, to calibrate."""
    count = len(transformer.blocks) - recipe.plain_last
    made: list[Block] = []
    for number, (module, means) in enumerate(zip(transformer.blocks, calibrate(transformer), strict=True)):
        block = cast(WanBlock, module)
        scales = attention_scales(block, means) if recipe.attention is not None else None
        if number < count:
            made.append(Fp8Block(block, recipe, means, scales))
        else:
            made.append(block if scales is None else Fp8AttentionBlock(block, recipe, scales))
    return tuple(made)


def quantised_block(block: WanBlock, means: BlockMeans) -> Fp8Weights:
    """Quantise a block's weights; what stays as it is, is shared with the block."""
    own, cross = block.attn1, block.attn2
    norm2 = (block.norm2.weight, block.norm2.bias) if isinstance(block.norm2, nn.LayerNorm) else None
    return Fp8Weights(
        **{name: quantised_linear(layers, getattr(means, name)) for name, layers in _products(block).items()},
        query_norm=own.norm_q.weight,
        key_norm=own.norm_k.weight,
        cross_norm=cross.norm_q.weight,
        norm2=norm2,
        modulation=block.scale_shift_table,
    )


def _products(block: WanBlock) -> dict[str, list[nn.Linear]]:
    own, cross, mlp = block.attn1, block.attn2, block.ffn.net
    layers = {
        "qkv": [own.to_q, own.to_k, own.to_v],
        "cross_query": [cross.to_q],
        "up": [mlp[0].proj],
        "down": [mlp[2]],
    }
    return cast("dict[str, list[nn.Linear]]", layers)


def attention_scales(block: WanBlock, means: BlockMeans) -> Fp8Scales:
    """Return the static scales of a block's self-attention, and the offset of its values.

    Queries and keys: RMSNorm over D numbers and the rotation keep each below sqrt(D) times the norm's largest weight,
    which becomes e4m3's largest number, so that none is clipped. Values: the largest of the calibration, and headroom;
    the result of attention, a mean of values, has their scale.
    """
    own = block.attn1
    root = math.sqrt(own.to_q.in_features)
    queries, keys = (root * float(norm.weight.abs().max()) for norm in (own.norm_q, own.norm_k))
    q, k, v = (E4M3_MAX / max(bound, 1e-6) for bound in (queries, keys, _VALUE_HEADROOM * means.values))
    offset = own.to_v.bias.float() + own.to_v.weight.float() @ means.qkv
    return Fp8Scales.of(q, k, v, v, offset.view(own.heads, -1))


class Fp8Block:
    """A block in fp8 in the place of a `WanBlock`."""

    def __init__(self, block: WanBlock, recipe: Fp8Recipe, means: BlockMeans, scales: Fp8Scales | None) -> None:
        self._block, self._recipe, self._eps, self._heads = block, recipe, block.eps, block.attn1.heads
        self._weights, self._scales = quantised_block(block, means), scales
        if scales is not None:  # the product gives values less their offset: that part of its bias is 0
            self._weights.qkv.bias[2 * scales.offset.numel() :] = 0

    def __call__(self, hidden: torch.Tensor, layer: int, shared: BlockContext) -> torch.Tensor:
        """See `Block`. Masks are for training, which is not in fp8."""
        assert shared.mask is None, "fp8 blocks take no mask"
        weights, kernels, attention = self._weights, self._recipe.kernels, shared.execution.attention
        modulation = Modulation(weights.modulation, shared.time)
        attended = self._self_attention(hidden, modulation, layer, shared.kv, attention)
        hidden, rows = kernels.affine_rows(
            hidden, attended, modulation, weights.norm2, weights.cross_query.mean, self._eps
        )
        queries = product(*rows, weights.cross_query).view_as(hidden)
        text = shared.text.exchange(layer, self._block.attn2.keys_values)
        crossed = self._cross_attention(queries, text, attention)
        hidden, rows = kernels.modulated_rows(hidden, crossed, modulation, SHIFT_MLP, weights.up.mean, self._eps)
        inner = product(*rows, weights.up)
        update = product(*kernels.gelu_rows(inner, weights.down.mean), weights.down)
        return kernels.residual(hidden, update, modulation)

    def _self_attention(
        self, hidden: torch.Tensor, modulation: Modulation, layer: int, kv: KeyValueView, attention: AttentionBackend
    ) -> torch.Tensor:
        """The output projection of self-attention, [B, N, dim]."""
        weights, kernels, scales = self._weights, self._recipe.kernels, self._scales
        _, rows = kernels.modulated_rows(hidden, None, modulation, SHIFT, weights.qkv.mean, self._eps)
        qkv = product(*rows, weights.qkv).view(hidden.shape[0], hidden.shape[1] * hidden.shape[2], -1)
        norms = HeadNorms(weights.query_norm, weights.key_norm, *kv.query_rotation)
        queries, own_keys, own_values = kernels.head_parts(qkv, norms, self._heads, self._eps, scales)
        if kv.observes:
            kv.observe(layer, queries.to(own_keys.dtype))
        keys, values = kv.exchange(layer, own_keys, own_values)
        if scales is None:
            return self._block.attn1.output(attention(queries, keys, values))
        assert self._recipe.attention is not None
        return self._block.attn1.output(
            self._recipe.attention(queries, converted(keys, E4M3), converted(values, E4M3), scales)
        )

    def _cross_attention(self, queries: torch.Tensor, text: KeysValues, attention: AttentionBackend) -> torch.Tensor:
        """queries [B, F, n, dim], before their norm -> the output projection, [B or B F, .., dim]."""
        keys, values = text
        if keys.dim() == 5:  # every frame has its own text
            queries, keys, values = queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
        else:
            queries = queries.flatten(1, 2)
        normed = F.rms_norm(queries, queries.shape[-1:], self._weights.cross_norm, self._eps)
        attended = attention(normed.view(*normed.shape[:-1], self._heads, -1), keys, values)
        return self._block.attn2.output(attended)


class Fp8AttentionBlock:
    """A block with self-attention in fp8 and all products in the model's dtype."""

    def __init__(self, block: WanBlock, recipe: Fp8Recipe, scales: Fp8Scales) -> None:
        assert recipe.attention is not None
        self._block, self._attention, self._scales = block, recipe.attention, scales

    def __call__(self, hidden: torch.Tensor, layer: int, shared: BlockContext) -> torch.Tensor:
        """See `Block`."""
        assert shared.mask is None, "fp8 blocks take no mask"
        block, kv, scales, halves = self._block, shared.kv, self._scales, shared.execution.halves
        queries, keys, values = halves.before(block, hidden, shared.time, *kv.query_rotation, shared.rotary)
        if kv.observes:
            kv.observe(layer, queries)
        own_values = ((values - scales.offset) * scales.values).to(hidden.dtype)
        keys, values = kv.exchange(layer, (keys * scales.keys).to(hidden.dtype), own_values)
        scaled = converted(queries * scales.queries, E4M3)
        attended = self._attention(scaled, converted(keys, E4M3), converted(values, E4M3), scales)
        text = shared.text.exchange(layer, block.attn2.keys_values)
        return halves.after(block, hidden, attended, shared.time, text, shared.execution.attention)
