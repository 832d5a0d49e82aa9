"""Drives a cache and the plain reference of its policy with the same random keys, values and queries, and compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from cache.rotary import Rotary
from tests.parity import kv_reference as plain
from tests.parity import kv_reference_blocks as blocks
from tests.parity.kv_reference import GRID, HEAD_DIM, HEADS, TOKENS
from tests.parity.kv_reference_r1 import R1Rule

LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """chunks: latent frames of each chunk in turn; 0 is a scene cut. passes: frames of each pass; None is all.

    keep: how many frames of the largest chunks stay; smaller chunks keep none and have one pass (a filling window).
    """

    policy: str
    rule: Callable[[], plain.Rule]
    options: dict[str, Any] = field(default_factory=dict)
    chunks: tuple[int, ...] = (2,) * 9
    passes: tuple[int | None, ...] = (None, None)
    keep: int | None = None
    seed: int = 0


CASES: dict[str, Case] = {
    "full": Case(
        policy="full", options={"max_frames": 11}, rule=lambda: plain.SinkRule(99), chunks=(1, 2, 2, 2, 2, 2), seed=1
    ),
    "window": Case(policy="window", options={"window_frames": 5}, rule=lambda: plain.SinkRule(5)),
    "window, first chunk smaller": Case(
        policy="window",
        options={"window_frames": 6},
        rule=lambda: plain.SinkRule(6),
        chunks=(1, 2, 2, 1, 2, 2, 2, 1, 2),
    ),
    "sink": Case(
        policy="sink", options={"window_frames": 7, "sink_frames": 2}, rule=lambda: plain.SinkRule(7, 2)
    ),
    "sink, absolute positions": Case(
        policy="sink",
        options={"window_frames": 7, "sink_frames": 2, "positions": "absolute"},
        rule=lambda: plain.SinkRule(7, 2, "absolute"),
    ),
    "sink, window of noise (Rolling Forcing)": Case(
        policy="sink",
        options={"window_frames": 9, "sink_frames": 1, "chunk_frames": 6},
        rule=lambda: plain.SinkRule(9, 1),
        chunks=(2, 4, 6, 6, 6, 6, 6),
        passes=(None, 2),
        keep=2,
    ),
    "deep-sink": Case(
        policy="deep-sink",
        options={"window_frames": 8, "sink_frames": 4},
        rule=lambda: plain.SinkRule(8, 4, "realigned"),
    ),
    "adaptive-sink": Case(
        policy="adaptive-sink",
        options={"window_frames": 6, "sink_frames": 3, "threshold": -0.1},
        rule=lambda: plain.AdaptiveRule(6, 3, -0.1),
        chunks=(1,) * 20,
        seed=3,
    ),
    "participative": Case(
        policy="participative",
        options={"window_frames": 10, "sink_frames": 2, "budget_frames": 7, "recent_frames": 3},
        rule=lambda: plain.ParticipativeRule(10, 2, 7, 3),
        chunks=(2,) * 12,
    ),
    "heavy-hitter": Case(
        policy="heavy-hitter",
        options={"heavy_frames": 3, "recent_frames": 3},
        rule=lambda: plain.HeavyRule(3, 3),
        chunks=(2,) * 10,
    ),
    "r1-kv": Case(
        policy="r1-kv",
        options={"window_frames": 9, "sink_frames": 1, "recent_frames": 3, "importance": 0.5, "pool_tokens": 3},
        rule=lambda: R1Rule(9, 1, 3, 0.5, 3),
        chunks=(2,) * 12,
    ),
    "packed, top-k": Case(
        policy="packed",
        options={
            "sink_frames": 2, "mid_blocks": 2, "block_frames": 2, "recent_frames": 2, "pool_blocks": 4,
            "pooling": (2, 2, 1),
        },
        rule=lambda: blocks.PackedRule(2, 2, 2, 2, (2, 2, 1), 4, True),
        chunks=(2,) * 12,
    ),
    "packed, recent": Case(
        policy="packed",
        options={
            "sink_frames": 2, "mid_blocks": 3, "block_frames": 2, "recent_frames": 2, "pooling": (1, 1, 2),
            "selection": "recent",
        },
        rule=lambda: blocks.PackedRule(2, 3, 2, 2, (1, 1, 2), 0, False),
        chunks=(2,) * 10,
    ),
    "dual": Case(
        policy="dual",
        options={"context_frames": 5, "local_frames": 4},
        rule=lambda: blocks.DualRule(5, 4, 1 / 6),
        chunks=(5, 2, 2, 2, 0, 5, 2, 2, 0, 5, 2, 2, 2, 0, 5, 2, 2),
    ),
}  # fmt: skip


def tiny_cache(case: Case, *, storage: str = "native", dtype: torch.dtype = torch.float64, rows: int = 1) -> KVCache:
    """Return the case's cache at the sizes of the reference."""
    options = {"chunk_frames": max(case.chunks), **case.options} if case.policy != "dual" else case.options
    options = {"chunk_frames": 2, **options}
    policy = make_policy(case.policy, grid=GRID, **options)
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID, cache_rows=rows, dtype=dtype)
    return KVCache(shape, policy, rotary=Rotary(HEAD_DIM), storage=storage)


def attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Plain scaled dot-product attention of queries [B, N, H, D] over keys [B, M, H, D]."""
    weights = torch.einsum("bnhd,bmhd->bhnm", queries, keys) * HEAD_DIM**-0.5
    return torch.einsum("bhnm,bmhd->bnhd", weights.softmax(dim=-1), values)


def random_tokens(generator: torch.Generator, frames: int, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    """Return unrotated queries, keys and values [1, frames * TOKENS, H, D]."""
    return torch.randn(
        3, 1, frames * TOKENS, HEADS, HEAD_DIM, dtype=torch.float64, generator=generator
    ).to(dtype).unbind(0)  # fmt: skip


def cached_pass(
    cache: KVCache, tokens: Sequence[Sequence[torch.Tensor]], frames: int | None, row: int = 0
) -> list[torch.Tensor]:
    """Run one pass. Returns the attention output [N, H, D] of each layer."""
    view = cache.view([row], frames)
    out = []
    for layer, (queries, keys, values) in enumerate(tokens):
        turned = Rotary(HEAD_DIM).rotate(queries, *view.query_rotation)
        if view.observes:
            view.observe(layer, turned)
        out.append(attention(turned, *view.exchange(layer, keys, values))[0])
    return out


def plain_pass(rule: plain.Rule, tokens: Sequence[torch.Tensor], first: bool) -> torch.Tensor:
    """Return the output of one layer, over the whole history."""
    queries, keys, values = (part[0] for part in tokens)
    past = rule.past(queries if first else None)
    frames = zip(keys.split(TOKENS), values.split(TOKENS), strict=True)
    chunk = [plain.frame_tokens(k, v, rule.chunk_at() + i, rule.phase(i)) for i, (k, v) in enumerate(frames)]
    out, weights = plain.attend(rule.history, queries, past, chunk)
    if first:
        rule.saw(weights)
    return out


def compare(case: Case, *, storage: str = "native", dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Return the differences of attention outputs of every chunk, pass and layer; checks integrity at every chunk."""
    cache = tiny_cache(case, storage=storage, dtype=dtype)
    rules = [case.rule() for _ in range(LAYERS)]
    generator = torch.Generator().manual_seed(case.seed)
    differences = []
    for frames in case.chunks:
        if not frames:
            cache.scene_cut(0)
            for rule in rules:
                assert isinstance(rule, blocks.DualRule)
                rule.cut()
            continue
        full = frames == max(case.chunks)
        keep = None if case.keep is None else case.keep if full else 0
        cache.begin(0, frames, keep=keep)
        cache.check_integrity()
        for rule in rules:
            rule.begin(frames)
        for number, part in enumerate(case.passes if keep != 0 else case.passes[:1]):
            count = frames if part is None else min(part, frames)
            tokens = [random_tokens(generator, count, dtype) for _ in range(LAYERS)]
            outputs = cached_pass(cache, tokens, part if part is None else count)
            expected = [plain_pass(rule, t, number == 0) for rule, t in zip(rules, tokens, strict=True)]
            differences += [a - b for a, b in zip(outputs, expected, strict=True)]
        kept = (frames if keep is None else keep) * TOKENS
        if not kept:
            continue
        for rule, (_, keys, values) in zip(rules, tokens, strict=True):
            rule.history.append(keys[0, :kept], values[0, :kept])
    return differences


def with_options(case: Case, **options: Any) -> Case:
    """Return the case with changed options of its policy."""
    return replace(case, options={**case.options, **options})
