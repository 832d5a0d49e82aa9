"""Owns the formulas of the feature bank: extended attention, fusion with nearest neighbours, merging to constant size.

After Liang et al. 2024, Looking Backward: Streaming Video-to-Video Translation with Feature Banks (StreamV2V). Pure
functions of tensors with static shapes that wait for nothing. Independent of networks and of where a bank is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

_SUM_SCALE = 2.0**24  # features are summed as multiples of 2^-24


def extended_attention(
    query: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    values: tuple[torch.Tensor, torch.Tensor],
    *,
    heads: int,
) -> torch.Tensor:
    """softmax(q [k; k_bank]^T / sqrt(d)) [v; v_bank].

    query: [N, S, C]. keys, values: (of the frame [N, S, C], of the bank [N, M, C]). Returns [N, S, C].
    """
    rows, _, channels = query.shape
    shape = (rows, -1, heads, channels // heads)
    key, value = (torch.cat(parts, dim=1).view(shape).transpose(1, 2) for parts in (keys, values))
    seen = functional.scaled_dot_product_attention(query.view(shape).transpose(1, 2), key, value)
    return seen.transpose(1, 2).reshape(rows, -1, channels)


def fused(features: torch.Tensor, bank: torch.Tensor, strength: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """x <- (1 - s) x + s x_nn where cos(x, x_nn) >= threshold, else x; x_nn is the bank's nearest feature by cosine.

    features: [N, S, C]. bank: [N, M, C]. strength: [N] in [0, 1]. threshold: scalar tensor. Returns [N, S, C].
    """
    cosines = functional.normalize(features, dim=-1) @ functional.normalize(bank, dim=-1).mT
    best, index = cosines.max(dim=-1)
    nearest = _take(bank, index)
    share = strength[:, None, None].to(features.dtype)
    return torch.where((best >= threshold)[..., None], (1 - share) * features + share * nearest, features)


def merged(
    banked: Sequence[torch.Tensor], new: Sequence[torch.Tensor], order: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Merge the 2 M features of bank and frame to M, by bipartite soft matching (Bolya et al. 2023, section 3).

    The first M in `order` each join the one among the last M whose key has the largest cosine with theirs; a group
    becomes its mean. All features of a token follow its key.

    banked, new: keys [N, M, C] first, then other features [N, M, ...] of the same tokens. order: [N, 2 M] int64, a
    permutation in each row. Returns the merged features, [N, M, ...] each, in the order of the last M. Sums are of
    integers, so the result does not depend on the order in which a device adds.
    """
    count = new[0].shape[1]
    joining, staying = order[:, :count], order[:, count:]
    tokens = [torch.cat(pair, dim=1) for pair in zip(banked, new, strict=True)]
    keys = functional.normalize(tokens[0], dim=-1)
    group = (_take(keys, joining) @ _take(keys, staying).mT).argmax(dim=-1)
    sizes = torch.ones_like(group).scatter_add(1, group, torch.ones_like(group))
    return tuple(_means(_take(t, joining), _take(t, staying), group, sizes) for t in tokens)


def _means(joining: torch.Tensor, staying: torch.Tensor, group: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    parts = (torch.round(part.double() * _SUM_SCALE).to(torch.int64) for part in (staying, joining))
    sums, added = parts
    sums = sums.scatter_add(1, group[..., None].expand_as(added), added)
    return (sums.double() / (_SUM_SCALE * sizes[..., None])).to(staying.dtype)


def _take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """tokens: [N, T, C], index: [N, K] -> [N, K, C]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def random_orders(tokens: int, count: int, seed: int) -> torch.Tensor:
    """Return `count` seeded permutations of 2 * tokens: [count, 2 tokens] int64, the same on every machine."""
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(2 * tokens, generator=random) for _ in range(count)])
