"""Scoring by importance and redundancy: formulas against plain ones, and what r1-kv keeps because of them."""

from __future__ import annotations

import pytest
import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import POLICIES, make_policy
from cache.kv.scores import importance, redundancy
from cache.rotary import Rotary
from tests.fakes.kv_notation import operations, plans, walk
from tests.fakes.small_kv import GRID, HEAD_DIM, HEADS, LAYERS, TOKENS, chunks, make, one_pass, tokens
from tests.parity.kv_reference_r1 import plain_importance, plain_redundancy


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, HEADS, HEAD_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pool", [1, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 11])
def test_importance_is_pooled_attention(n: int, pool: int) -> None:
    queries, keys = random(5), 3 * random(n, seed=1)
    found = importance(queries, keys, pool_tokens=pool)
    for head in range(HEADS):
        torch.testing.assert_close(found[:, head], plain_importance(queries[:, head], keys[:, head], pool))


@pytest.mark.parametrize("n", [1, 2, 11])
def test_redundancy_is_the_mean_cosine_over_all_pairs(n: int) -> None:
    keys = 5 * random(n)
    found = redundancy(keys)
    for head in range(HEADS):
        torch.testing.assert_close(found[:, head], plain_redundancy(keys[:, head]))
    torch.testing.assert_close(found, redundancy(keys * torch.rand(n, 1, 1).double()))  # length does not matter
    torch.testing.assert_close(found.sum(0), torch.ones(HEADS).double())


def test_redundancy_of_equal_and_of_empty_keys() -> None:
    torch.testing.assert_close(redundancy(random(1).expand(8, -1, -1)), torch.full((8, HEADS), 1 / 8).double())
    assert bool(redundancy(torch.zeros(4, HEADS, HEAD_DIM)).isfinite().all())
    assert redundancy(random(4).bfloat16()).dtype is torch.float32


def test_compression_begins_when_the_window_is_full() -> None:
    policy = make_policy("r1-kv", grid=(1, 1), window_frames=8, sink_frames=1, recent_frames=2, chunk_frames=2)
    assert walk(policy, [2] * 7) == [
        "C0@0 C1@1 -- -- -- -- -- --",
        "S0@0 R1@1 C2@2 C3@3 -- -- -- --",
        "S0@0 R1@1 R2@2 R3@3 C4@4 C5@5 -- --",
        "S0@0 R1@1 R2@2 R3@3 R4@4 R5@5 C6@6 C7@7",
        "S0@0 T@1 T@2 T@3 C8@6 C9@7 R6@4 R7@5",
        "S0@0 T@1 T@2 T@3 R8@4 R9@5 C10@6 C11@7",
        "S0@0 T@1 T@2 T@3 C12@6 C13@7 R10@4 R11@5",
    ]
    steps = [operations(plan) for plan in plans(policy, [2] * 7)]
    assert steps[:4] == [[]] * 4
    assert steps[4:] == [
        ["first pass: tokens by importance of R1@-1 R2@0 R3@1 R4@2 R5@3 to 1, 2, 3"],
        ["first pass: tokens by importance of T@-1 T@0 T@1 R6@2 R7@3 to 1, 2, 3"],
        ["first pass: tokens by importance of T@-1 T@0 T@1 R8@2 R9@3 to 1, 2, 3"],
    ]


def test_shapes_and_ranges_are_constant_once_the_window_is_full() -> None:
    cache, signatures = make("r1-kv"), []
    for seed in range(16):
        cache.begin(0, 2)
        view = cache.view([0])
        signatures.append(view.signature)
        one_pass(cache, tokens(seed), view=view)
    assert len(set(signatures[6:])) == 1, "one captured graph serves the first passes of all chunks"


@pytest.mark.parametrize(("sink", "other"), [(0, "window"), (2, "sink")])
def test_without_room_to_select_it_is_the_window(sink: int, other: str) -> None:
    """Recent frames and sink fill the window: the same cells, positions and contents, bit by bit."""
    options = {"window_frames": 8, "sink_frames": sink, "chunk_frames": 2}
    both = (
        make_policy("r1-kv", grid=GRID, recent_frames=6 - sink, **options),
        make_policy(other, grid=GRID, **options),
    )
    assert walk(both[0], [2] * 9) == walk(both[1], [2] * 9)
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID)
    ours, window = (KVCache(shape, policy, rotary=Rotary(HEAD_DIM)) for policy in both)
    for seed in range(9):
        for a, b in zip(chunks(ours, 1, first=seed), chunks(window, 1, first=seed), strict=True):
            assert torch.equal(a, b)


def test_while_the_budget_holds_everything_it_is_the_window() -> None:
    ours, window = make("r1-kv"), make("sink")  # windows of 9
    for seed in range(4):
        for a, b in zip(chunks(ours, 1, first=seed), chunks(window, 1, first=seed), strict=True):
            assert torch.equal(a, b)


def static_scene(frames: int, news: dict[int, int]) -> list[torch.Tensor]:
    """Chunks of 2 frames that repeat one frame of orthogonal keys; news: by frame, the token that is unlike all others.

    The value of a token is the number of its frame. Queries are zero, so that all tokens are equally important.
    """
    given = torch.zeros(LAYERS, 3, 1, frames * TOKENS, HEADS, HEAD_DIM)
    kinds = torch.arange(TOKENS).repeat(frames)
    for number, (frame, place) in enumerate(news.items()):
        kinds[frame * TOKENS + place] = TOKENS + number
    given[:, 1, 0] = torch.eye(HEAD_DIM)[kinds][:, None]
    given[:, 2, 0] = (torch.arange(frames * TOKENS) // TOKENS)[:, None, None].float()
    return list(given.split(2 * TOKENS, dim=3))


def test_duplicates_of_a_static_scene_are_dropped_first() -> None:
    """What happened once outlives the window; what is seen in every frame makes room for it."""
    policy = make_policy("r1-kv", grid=GRID, window_frames=6, recent_frames=2, chunk_frames=2)
    cache = KVCache(KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID), policy, rotary=Rotary(HEAD_DIM))
    news = {1: 3, 3: 0, 4: 5, 6: 2}
    for given in static_scene(20, news):
        cache.begin(0, 2)
        for values in one_pass(cache, given)[1::2]:
            frames = values[0, :, :, 0]
    for head in range(HEADS):
        oldest = sorted(frames[:, head].tolist())[: len(news)]
        assert oldest == [float(frame) for frame in news], "12 frames after the last of them, in a window of 6"


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("rebuild", "dual", "full")])
def test_nothing_asks_the_device(name: str) -> None:
    """On a device that has no values, reading one would raise."""
    options = {"pooling": (2, 1, 1)} if name == "packed" else {}
    shape = KVShape(layers=1, heads=HEADS, head_dim=HEAD_DIM, grid=GRID, device="meta")
    cache = KVCache(shape, make_policy(name, grid=GRID, **options), rotary=Rotary(HEAD_DIM))
    frames = cache.policy.chunk_frames
    given = torch.empty(1, frames * TOKENS, HEADS, HEAD_DIM, device="meta")
    for _ in range(30):
        cache.begin(0, frames)
        view = cache.view([0])
        view.observe(0, given)
        view.exchange(0, given, given)
