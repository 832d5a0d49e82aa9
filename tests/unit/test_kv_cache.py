"""The key/value cache: memory, addresses, passes that overwrite, rows, what is refused."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cache.kv.cache import KVCache, KVShape
from cache.kv.integrity import check_row
from cache.kv.plan import KVError, Ledger, SpanKind
from cache.kv.policies import make_policy
from cache.kv.store import quantise
from cache.rotary import Rotary
from tests.fakes.small_kv import (
    GRID,
    HEAD_DIM,
    HEADS,
    LAYERS,
    POLICIES,
    STORAGES,
    TOKENS,
    chunks,
    make,
    one_pass,
    tokens,
)


class Allocations(TorchDispatchMode):
    """Records every tensor that is created."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out

    @property
    def bytes(self) -> int:
        """Memory of the tensors that are still alive."""
        alive = [t.untyped_storage() for t in (made() for made in self._made) if t is not None]
        return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", POLICIES)
def test_bytes_are_what_was_allocated(name: str, storage: str) -> None:
    with Allocations() as allocations:
        cache = make(name, storage=storage, rows=2)
        assert cache.bytes == allocations.bytes
        for seed in range(8):
            cache.begin(0, 2)
            one_pass(cache, tokens(seed))
    assert cache.bytes == allocations.bytes, "nothing is kept beyond what was made at the beginning"


def test_memory_is_as_the_formula_says() -> None:
    shape = KVShape(layers=30, heads=12, head_dim=128, grid=(30, 52), dtype=torch.bfloat16, device="meta")
    frame = 30 * 12 * 128 * 30 * 52 * 2 * 2
    assert frame == 287_539_200, "287.5 MB of keys and values for each latent frame of Wan 1.3B"
    sizes = {}
    for storage in STORAGES:
        policy = make_policy("window", grid=(30, 52), window_frames=21)
        sizes[storage] = KVCache(shape, policy, rotary=Rotary(128), storage=storage).bytes / (21 * frame)
    assert sizes["native"] == pytest.approx(1.5, abs=0.01), "keys, values, rotated keys"
    assert sizes["lean"] == pytest.approx(1 + 1 / 30, abs=0.01), "and one layer's keys and values"
    assert sizes["int8"] == pytest.approx((128 + 4) / 256 + 1 / 30, abs=0.01)
    assert sizes["rotated"] == pytest.approx(1, abs=0.01), "rotated keys and values"


@pytest.mark.parametrize("storage", ["native", "int8"])
@pytest.mark.parametrize("name", POLICIES)
def test_five_passes_take_one_place(name: str, storage: str) -> None:
    once, often = make(name, storage=storage), make(name, storage=storage)
    for chunk in range(8):
        once.begin(0, 2)
        often.begin(0, 2)
        length = often.ledger(0).length
        if once.policy.scores_queries or once.policy.accumulates:
            one_pass(once, tokens(100 * chunk))
        for number in range(5):
            attended = one_pass(often, tokens(100 * chunk + number))
            assert often.ledger(0).length == length == attended[0].shape[1]
        for a, b in zip(one_pass(once, tokens(100 * chunk + 4)), attended, strict=True):
            assert torch.equal(a, b)
        often.check_integrity()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", [n for n in POLICIES if n != "full"])
def test_steady_state_keeps_shapes_addresses_and_memory(name: str, storage: str) -> None:
    cache = make(name, storage=storage)
    chunks(cache, 10)
    seen = set()
    for seed in range(10, 16):
        cache.begin(0, 2)
        for _ in range(2):
            view = cache.view([0])
            cos, sin = view.query_rotation
            addresses = [cos.data_ptr(), sin.data_ptr()]
            shapes = [cos.shape, sin.shape]
            for layer, (queries, keys, values) in enumerate(tokens(seed)):
                view.observe(layer, queries)
                for part in view.exchange(layer, keys, values):
                    addresses.append(part.data_ptr())
                    shapes.append(part.shape)
            seen.add((view.signature, tuple(addresses), tuple(shapes)))
    assert len({entry[0] for entry in seen}) == len(seen) <= 2, "one for the first pass at most, one for the others"
    assert len({entry[1:] for entry in seen}) == 1


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", [n for n in POLICIES if n != "full"])
def test_a_pass_recorded_once_can_be_replayed(name: str, storage: str) -> None:
    """As a CUDA graph does: kernels and addresses of an earlier pass, after a later `begin`."""
    fresh, replayed = make(name, storage=storage), make(name, storage=storage)
    chunks(fresh, 10)
    chunks(replayed, 10)
    recorded: dict[Any, Any] = {}
    replays = 0
    for seed in range(10, 17):
        fresh.begin(0, 2)
        replayed.begin(0, 2)
        for number in range(2):
            given = tokens(10 * seed + number)
            view = replayed.view([0])
            replays += view.signature in recorded
            view = recorded.setdefault(view.signature, view)
            for a, b in zip(one_pass(fresh, given), one_pass(replayed, given, view=view), strict=True):
                assert torch.equal(a, b)
    assert replays >= 12


class NoWaiting(TorchDispatchMode):
    """Rejects operations that synchronise with the device: reading a value, or a size that depends on values."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        assert not any(name.startswith(refused) for refused in self.REFUSED), name
        if name in ("index", "index_put_", "index_put"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a boolean index waits for its count"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("storage", ["native", "int8"])
@pytest.mark.parametrize("name", POLICIES)
def test_the_host_never_waits_for_the_device(name: str, storage: str) -> None:
    cache = make(name, storage=storage)
    with NoWaiting():
        chunks(cache, 8)
        cache.flush(0)
        chunks(cache, 1)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoWaiting():
        torch.ones(1).item()


@pytest.mark.parametrize("storage", ["native", "int8"])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_together_are_rows_apart(name: str, storage: str) -> None:
    together, apart = make(name, storage=storage, rows=3), make(name, storage=storage, rows=3)
    for seed in range(9):
        given = tokens(seed, rows=3)
        for row in range(3):
            together.begin(row, 2)
            apart.begin(row, 2)
        assert together.groups([0, 1, 2]) == [(0, 1, 2)]
        whole = one_pass(together, given, (0, 1, 2) if seed % 2 else (2, 0, 1))
        order = [0, 1, 2] if seed % 2 else [2, 0, 1]
        for column, row in enumerate(order):
            alone = one_pass(apart, given[:, :, column : column + 1], (row,))
            for a, b in zip(whole, alone, strict=True):
                assert torch.equal(a[column], b[0])


def test_rows_of_different_length_are_passed_apart() -> None:
    cache = make(rows=3)
    chunks(cache, 1, row=0)
    for row in range(3):
        cache.begin(row, 2)
    assert cache.groups([0, 1, 2]) == [(0,), (1, 2)]
    with pytest.raises(KVError, match=r"rows \(0, 1\) attend to .*: pass them separately, see groups"):
        cache.view([0, 1])
    one_pass(cache, tokens(5, rows=2), (1, 2))


@pytest.mark.parametrize("name", POLICIES)
def test_int8_is_within_half_a_step(name: str) -> None:
    x = torch.randn(50, HEADS, HEAD_DIM)
    quantised, scale = quantise(x)
    assert ((quantised * scale - x).abs() <= scale / 2 * 1.0001).all()
    assert torch.equal(quantise(torch.zeros(3, 4))[0], torch.zeros(3, 4, dtype=torch.int8))
    exact, small = make(name), make(name, storage="int8")
    for a, b in zip(chunks(exact, 3), chunks(small, 3), strict=True):
        assert (a - b).abs().max() < 0.04
        assert torch.equal(a[:, -2 * TOKENS :], b[:, -2 * TOKENS :]), "the chunk itself is not rounded"


def test_what_a_cache_cannot_do_is_said() -> None:
    cache = make()
    with pytest.raises(KVError, match="row 0 has no chunk: call begin"):
        cache.view([0])
    cache.begin(0, 2)
    with pytest.raises(KVError, match="a pass of 3 latent frames in row 0, whose chunk has 2"):
        cache.view([0], 3)
    for early in (
        lambda: cache.begin(0, 2),
        lambda: cache.flush(0),
        lambda: cache.scene_cut(0),
        lambda: cache.snapshot(0),
    ):
        with pytest.raises(KVError, match="no pass has run on the chunk begun in row 0"):
            early()
    one_pass(cache, tokens(0))
    with pytest.raises(KVError, match="keep_last_frames is -1"):
        cache.flush(0, -1)
    before = cache.ledger(0)
    with pytest.raises(KVError, match="a chunk of 3 latent frames"):
        cache.begin(0, 3)
    assert cache.ledger(0) is before
    policy = make_policy("sink", grid=(2, 3))
    shape = KVShape(layers=1, heads=1, head_dim=16, grid=(2, 3))
    with pytest.raises(KVError, match=r"unknown KV storage 'int4'.*native, lean, int8"):
        KVCache(shape, policy, rotary=Rotary(16), storage="int4")
    with pytest.raises(KVError, match=r"the grid \(2, 3\) and the cache for \(3, 3\)"):
        KVCache(replace(shape, grid=(3, 3)), policy, rotary=Rotary(16))
    with pytest.raises(KVError, match="head_dim 32 and the cache 16"):
        KVCache(shape, policy, rotary=Rotary(32))


def test_a_pass_takes_the_kept_frames_or_all() -> None:
    policy = make_policy("sink", grid=GRID, window_frames=9, sink_frames=1, chunk_frames=6)
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID)
    cache = KVCache(shape, policy, rotary=Rotary(HEAD_DIM))
    for _ in range(4):
        cache.begin(0, 6, keep=2)
        assert cache.view([0]).tokens == 6 * TOKENS
        assert cache.view([0], 2).tokens == 2 * TOKENS
        assert cache.view([0], 2).attended_tokens == cache.ledger(0).length - 4 * TOKENS
    with pytest.raises(KVError, match="all 6 latent frames of the chunk or the 2 kept, not 1"):
        cache.view([0], 1)


@pytest.mark.parametrize("name", ["participative", "packed", "heavy-hitter", "r1-kv"])
def test_observe_comes_before_exchange_in_the_first_pass_only(name: str) -> None:
    cache = make(name)
    chunks(cache, 6)
    cache.begin(0, 2)
    view = cache.view([0])
    assert view.observes
    with pytest.raises(AssertionError, match="observe"):
        view.exchange(0, *tokens(0)[0, 1:])
    assert not cache.view([0]).observes
    assert not make("sink").begin(0, 2).pool


def test_integrity_notices_what_does_not_agree() -> None:
    cache = make()
    chunks(cache, 6)
    policy, good = cache.policy, cache.ledger(0)
    check_row(policy, 0, good)
    spans = good.spans
    wrong: dict[str, Ledger] = {
        "a span off its cell": replace(good, spans=(replace(spans[0], start=1), *spans[1:])),
        "two spans in one cell": replace(good, spans=(replace(spans[0], start=6, stop=12), *spans[1:])),
        "a gap": replace(good, spans=(spans[0], *spans[2:])),
        "a position beyond the window": replace(good, spans=(*spans[:-1], replace(spans[-1], position=9))),
        "positions out of order": replace(good, spans=(replace(spans[0], position=1), *spans[1:])),
        "frames out of order": replace(good, spans=(replace(spans[0], frame=99), *spans[1:])),
        "the chunk in the middle": replace(good, spans=(*spans[:-1], replace(spans[-1], kind=SpanKind.RECENT))),
        "a waiting block attended": replace(good, spans=(replace(spans[0], kind=SpanKind.POOL), *spans[1:])),
        "a pool that does not wait": replace(good, pool=(spans[0],)),
    }
    noticed = set()
    for what, ledger in wrong.items():
        try:
            check_row(policy, 0, ledger)
        except AssertionError:
            noticed.add(what)
    assert noticed == set(wrong)
