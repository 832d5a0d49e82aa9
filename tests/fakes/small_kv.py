"""Small key/value caches of every policy with chunks of 2 frames, and passes over them with random tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from cache.rotary import Rotary

HEADS, HEAD_DIM, GRID, TOKENS, LAYERS = 2, 16, (2, 3), 6, 2

POLICIES: Mapping[str, dict[str, Any]] = {
    "full": {"max_frames": 60},
    "window": {"window_frames": 7},
    "sink": {"window_frames": 9, "sink_frames": 2},
    "adaptive-sink": {"window_frames": 7, "sink_frames": 2},
    "deep-sink": {"window_frames": 9, "sink_frames": 4},
    "participative": {"window_frames": 10, "sink_frames": 2, "budget_frames": 7, "recent_frames": 3},
    "heavy-hitter": {"heavy_frames": 3, "recent_frames": 3},
    "r1-kv": {"window_frames": 9, "sink_frames": 1, "recent_frames": 3, "pool_tokens": 3},
    "packed": {
        "sink_frames": 2,
        "mid_blocks": 2,
        "block_frames": 2,
        "recent_frames": 2,
        "pool_blocks": 3,
        "pooling": (2, 2, 1),
    },
    "dual": {"context_frames": 2, "local_frames": 6},
}
"""Small policies for chunks of 2 frames."""
STORAGES = ("native", "lean", "int8", "rotated")


def make(name: str = "sink", *, storage: str = "native", rows: int = 1, dtype: torch.dtype = torch.float32) -> KVCache:
    policy = make_policy(name, grid=GRID, chunk_frames=2, **POLICIES[name])
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID, cache_rows=rows, dtype=dtype)
    return KVCache(shape, policy, rotary=Rotary(HEAD_DIM), storage=storage)


def tokens(seed: int, rows: int = 1, frames: int = 2) -> torch.Tensor:
    """Return random queries, keys and values of all layers: [LAYERS, 3, rows, N, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, 3, rows, frames * TOKENS, HEADS, HEAD_DIM, generator=generator)


def one_pass(cache: KVCache, given: torch.Tensor, rows: tuple[int, ...] = (0,), view: Any = None) -> list[torch.Tensor]:
    """Run a pass with the given tokens. Returns copies of what each layer attends to: keys, values, keys, values,
    ..."""
    view = cache.view(rows) if view is None else view
    out: list[torch.Tensor] = []
    for layer, (queries, keys, values) in enumerate(given.to(cache.shape.dtype)):
        if view.observes:
            view.observe(layer, Rotary(HEAD_DIM).rotate(queries, *view.query_rotation))
        out += [part.clone() for part in view.exchange(layer, keys, values)]
    return out


def chunks(cache: KVCache, count: int, *, first: int = 0, row: int = 0) -> list[torch.Tensor]:
    """Run `count` chunks of one pass each. Returns what the last one attended to."""
    out: list[torch.Tensor] = []
    for seed in range(first, first + count):
        cache.begin(row, 2)
        out = one_pass(cache, tokens(seed), (row,))
    return out


def positions(cache: KVCache, row: int) -> tuple[int, ...]:
    """Return the positions in time of the attended spans, in latent frames."""
    return tuple(span.position for span in cache.ledger(row).spans)
