"""Keys that are rotated once, at positions of their own: what is attended to, scene cuts, and e4m3."""

from __future__ import annotations

import pytest
import torch

from cache.kv.bank import units
from cache.kv.cache import KVCache
from cache.kv.plan import KVError
from cache.kv.policies import make_policy
from cache.kv.store import E4M3
from cache.rotary import Rotary
from tests.fakes.small_kv import GRID, HEAD_DIM, POLICIES, chunks, make, one_pass, tokens


def outputs(cache: KVCache, seed: int) -> list[torch.Tensor]:
    """Run a chunk of one pass; return the logits of its queries, whose order of keys is that of the slots."""
    cache.begin(0, 2)
    view = cache.view([0])
    given = tokens(seed).to(cache.shape.dtype)
    queries = [Rotary(HEAD_DIM).rotate(part[0], *view.query_rotation) for part in given]
    attended = one_pass(cache, given, view=view)
    keys = [part.to(cache.shape.dtype) for part in attended[0::2]]
    return [torch.einsum("bnhd,bmhd->bhnm", q, k) for q, k in zip(queries, keys, strict=True)]


@pytest.mark.parametrize("name", ["window", "full"])
def test_logits_equal_those_of_keys_rotated_anew(name: str) -> None:
    """Across two scene cuts within one window, after which distances change, and a flush."""
    native, once = (make(name, storage=storage, dtype=torch.float64) for storage in ("native", "rotated"))
    for seed in range(14):
        for cache in (native, once):
            if seed in (5, 6):
                cache.scene_cut(0)
            if seed == 11:
                cache.flush(0)
        for a, b in zip(outputs(native, seed), outputs(once, seed), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)  # sums of 16 products in float64


def test_a_key_is_written_once_and_then_left_alone() -> None:
    cache = make("window", storage="rotated")
    chunks(cache, 6)
    newest = cache.ledger(0).spans[-1]
    before = chunks(cache, 1, first=6)[0][:, newest.start : newest.stop]
    after = chunks(cache, 1, first=7)[0][:, newest.start : newest.stop]
    assert newest.frame in {span.frame for span in cache.ledger(0).past}
    assert torch.equal(before, after)


def test_a_snapshot_of_integers_rewinds_to_the_same_keys() -> None:
    cache, never = make("window", storage="rotated"), make("window", storage="rotated")
    chunks(cache, 2)
    chunks(never, 2)
    early = cache.snapshot(0)
    chunks(cache, 1, first=50)
    cache.restore(0, early)
    for a, b in zip(chunks(cache, 3, first=2), chunks(never, 3, first=2), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in ("heavy-hitter", "r1-kv", "packed")])
def test_e4m3_is_the_same_rounded(name: str) -> None:
    """3 bits of mantissa are a relative 2^-4. The packed policy stores means of what was rounded."""
    native, small = make(name), make(name, storage="fp8")
    for seed in range(9):
        exact, rounded = chunks(native, 1, first=seed), chunks(small, 1, first=seed)
    assert {part.dtype for part in rounded} == {E4M3}
    if small.policy.keeps_distances:
        exact, rounded = exact[1::2], rounded[1::2]  # keys are at other positions
    for a, b in zip(exact, rounded, strict=True):
        assert ((a - b.float()).abs() <= a.abs() * 2**-4 + 2**-9).float().mean() > 0.99, name


def test_e4m3_saturates() -> None:
    cache = make("window", storage="fp8")
    cache.begin(0, 2)
    keys, values = one_pass(cache, 1e4 * tokens(0))[:2]
    assert keys.float().abs().max() == values.float().abs().max() == 448


@pytest.mark.parametrize("name", ["heavy-hitter", "r1-kv"])
def test_weighing_attention_is_refused(name: str) -> None:
    with pytest.raises(KVError, match="'fp8' scales keys, so attention cannot be weighed or summed: use 'native'"):
        make(name, storage="fp8")


def test_units_of_memory_are_those_that_are_allocated() -> None:
    for name in POLICIES:
        for storage in ("native", "rotated", "fp8"):
            if name in ("heavy-hitter", "r1-kv") and storage == "fp8":
                continue
            cache = make(name, storage=storage)
            own = (*cache._bank.store.tensors, *cache._rotated.tensors)
            unit = cache.policy.capacity_tokens * 2 * 2 * HEAD_DIM * 4
            attended = cache.policy.attended_tokens / cache.policy.capacity_tokens
            used = sum(tensor.nbytes for tensor in own) / unit
            assert used <= units(storage, cache.policy) <= used + 2.1 - 2 * attended + (storage == "fp8"), (
                name,
                storage,
            )


def test_a_sink_at_absolute_positions_keeps_distances() -> None:
    def policy(**options: object) -> bool:
        return make_policy("sink", grid=GRID, chunk_frames=2, window_frames=9, **options).keeps_distances

    assert not policy(sink_frames=2)
    assert policy(sink_frames=2, positions="absolute")
    assert policy(sink_frames=0)
