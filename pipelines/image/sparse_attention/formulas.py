"""Owns attention to a square window of keys whose denominator is restored by a ratio from an earlier full pass.

After Re-ttention (NeurIPS 2025), with windows in two dimensions. Queries are grouped in square blocks that share the
keys around them, so that less is computed: nothing is masked. Pure functions of tensors with static shapes.
Independent of networks and of where ratios are kept.
"""

from __future__ import annotations

import torch
from torch.nn import functional


class KeyWindows:
    """Which keys each block of queries attends to, on a grid of tokens.

    queries: [blocks, block^2] int64, the tokens of each block. keys: [blocks, window_h window_w] int64, those of the
    window around its centre; at the border of the grid the window is moved inwards, so that all have the same size.
    """

    def __init__(self, grid: tuple[int, int], *, block: int, window: int, device: torch.device) -> None:
        """grid: (height, width) in tokens, multiples of block. window: side in tokens, >= block; more than the grid
        means all of it."""
        assert all(side % block == 0 for side in grid), (grid, block)
        assert window >= block >= 1, (window, block)
        self.tokens = grid[0] * grid[1]
        tokens = torch.arange(self.tokens).view(grid)
        corners = [(top, left) for top in range(0, grid[0], block) for left in range(0, grid[1], block)]
        self.queries = torch.stack([tokens[t : t + block, c : c + block].flatten() for t, c in corners]).to(device)
        sides = (min(window, grid[0]), min(window, grid[1]))
        starts = [
            tuple(
                min(max(corner + (block - side) // 2, 0), length - side)
                for corner, side, length in zip(at, sides, grid, strict=True)
            )
            for at in corners
        ]
        windows = [tokens[t : t + sides[0], c : c + sides[1]].flatten() for t, c in starts]
        self.keys = torch.stack(windows).to(device)
        self._order = torch.argsort(self.queries.flatten())

    @property
    def share(self) -> float:
        """The share of all keys that a query attends to."""
        return self.keys.shape[1] / self.tokens

    def by_block(self, tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[N, H, T, d] -> [N H, blocks, K, d], where index is [blocks, K]."""
        rows, heads, _, width = tokens.shape
        chosen = tokens.index_select(2, index.flatten())
        return chosen.view(rows * heads, *index.shape, width)

    def in_order(self, blocks: torch.Tensor, rows: int) -> torch.Tensor:
        """[N H, blocks, block^2, d] -> [N, H, T, d]: the inverse of `by_block` for queries. rows: N."""
        return blocks.reshape(rows, -1, self.tokens, blocks.shape[-1]).index_select(2, self._order)


def full_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: KeyWindows
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to all keys. query, key, value: [N, H, T, d].

    Returns the result [N, H, T, d] and rho = sum over the window of exp(s) / sum over all keys of exp(s), [N, H, T].
    """
    rows, width = query.shape[0], query.shape[3]
    results, ratios = [], []
    for tokens, keys in zip(windows.queries, windows.keys, strict=True):  # block by block: all scores at once are large
        scores = query.index_select(2, tokens) @ key.mT * width**-0.5
        weights = scores.softmax(dim=-1)
        results.append(weights @ value)
        ratios.append(weights.index_select(-1, keys).sum(dim=-1))
    blocks = torch.stack(results, dim=2).flatten(0, 1)
    ratio = torch.stack(ratios, dim=2).flatten(0, 1)[..., None]
    return windows.in_order(blocks, rows), windows.in_order(ratio, rows)[..., 0]


def windowed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, windows: KeyWindows, ratio: torch.Tensor
) -> torch.Tensor:
    """Attend to the window with probabilities exp(s) / (sum over the window of exp(s) / rho).

    query, key, value: [N, H, T, d]. ratio: rho [N, H, T] of an earlier frame; 1 makes the window all there is.
    Returns [N, H, T, d].
    """
    rows = query.shape[0]
    blocks = functional.scaled_dot_product_attention(
        windows.by_block(query, windows.queries),
        windows.by_block(key, windows.keys),
        windows.by_block(value, windows.keys),
    )
    return windows.in_order(blocks, rows) * ratio[..., None].to(query.dtype)


def outside_attention(
    result: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    windows: KeyWindows,
    ratio: torch.Tensor,
) -> torch.Tensor:
    """Return what the keys outside the window add to the result of `full_attention`, sum of p v: [N, H, T, d].

    A later frame adds it to its `windowed_attention`. (DiTFastAttn, Yuan et al. 2024, shares such a residual between
    the steps of a denoising process, there without a ratio.)
    """
    return result - windowed_attention(query, key, value, windows, ratio)
