"""Every key/value policy for ten minutes at tiny size: flat memory, planned lengths, positions in range.

Ten minutes at 16 frames per second are 2,400 latent frames. A short version always runs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.plan import KVError
from cache.kv.policies import POLICIES, make_policy
from cache.rotary import Rotary
from tests.fakes.small_kv import positions

HEADS, HEAD_DIM, GRID, LAYERS, TOKENS = 2, 16, (2, 3), 2, 6
LATENT_FRAMES = 2400

OPTIONS: dict[str, dict[str, Any]] = {"packed": {"pooling": (2, 1, 1)}, "full": {"max_frames": 21}}

PLANNED: dict[str, Callable[[int], int]] = {
    "window": lambda frames: min(frames, 21) * TOKENS,
    "sink": lambda frames: min(frames, 12) * TOKENS,
    "adaptive-sink": lambda frames: min(frames, 6) * TOKENS,
    "deep-sink": lambda frames: min(frames, 21) * TOKENS,
    "participative": lambda frames: (frames if frames <= 21 else 19) * TOKENS,
    "heavy-hitter": lambda frames: min(frames, 21) * TOKENS,
    "r1-kv": lambda frames: min(frames, 21) * TOKENS,
    "packed": lambda frames: min(frames, 16) * TOKENS + min(max(frames - 16, 0) // 4, 16) * 2 * TOKENS,
    "dual": lambda frames: min(frames, 27) * TOKENS,
}
"""Attended tokens once so many latent frames have begun, chunk included."""


def made(name: str, storage: str) -> KVCache:
    policy = make_policy(name, grid=GRID, **OPTIONS.get(name, {}))
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID)
    return KVCache(shape, policy, rotary=Rotary(HEAD_DIM), storage=storage)


def tensor_bytes() -> int:
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not the fakes that exports of earlier tests have left
    tensors = {t.untyped_storage().data_ptr(): t for t in gc.get_objects() if type(t) in kinds}
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


def stream(cache: KVCache, name: str, latent_frames: int) -> None:
    """Run chunks of one pass with random tokens, asserting everything at every chunk, and memory in the long
    version."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 1, cache.policy.chunk_frames * TOKENS, HEADS, HEAD_DIM, generator=generator)
    size, begun, tensors = cache.bytes, 0, 0
    while begun < latent_frames:
        cache.begin(0, cache.policy.chunk_frames)
        begun += cache.policy.chunk_frames
        view = cache.view([0])
        for layer in range(LAYERS):
            queries, keys, values = given * (1 + 0.01 * layer) + 0.001 * begun
            if view.observes:
                view.observe(layer, queries)
            attended, _ = view.exchange(layer, keys, values)
            assert attended.shape[1] == cache.ledger(0).length == PLANNED[name](begun)
        assert bool(attended.isfinite().all())
        cache.check_integrity()
        allowed = cache.policy.position_range(cache.ledger(0))
        assert all(position in allowed for position in positions(cache, 0))
        assert cache.bytes == size
        if begun in range(180, 180 + cache.policy.chunk_frames):
            tensors = tensor_bytes()
    assert not tensors or tensor_bytes() <= tensors


@pytest.mark.parametrize("name", PLANNED)
def test_for_a_while(name: str) -> None:
    stream(made(name, "native"), name, 108)


@pytest.mark.soak
@pytest.mark.parametrize("storage", ["native", "lean", "int8"])
@pytest.mark.parametrize("name", PLANNED)
def test_for_ten_minutes(name: str, storage: str) -> None:
    stream(made(name, storage), name, LATENT_FRAMES)


def test_full_ends_and_rebuild_begins_anew() -> None:
    full, rebuild = made("full", "native"), made("rebuild", "native")
    for _ in range(7):
        full.begin(0, 3)
        full.view([0])
    with pytest.raises(KVError, match="holds 21 latent frames"):
        full.begin(0, 3)
    for frames in range(0, 60, 3):
        context = rebuild.policy.context(frames)  # type: ignore[attr-defined]
        rebuild.reset(0)
        if context:
            rebuild.begin(0, len(context))
            rebuild.view([0])
        rebuild.begin(0, 3)
        rebuild.check_integrity()
        assert positions(rebuild, 0) == tuple(range(len(context) + 3))


def test_every_policy_is_here() -> None:
    assert set(PLANNED) | {"full", "rebuild"} == set(POLICIES)
