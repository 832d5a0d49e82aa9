"""Rewinding and clearing the key/value cache: snapshots, reset, flush, scene cuts."""

from __future__ import annotations

import pytest
import torch

from cache.kv.plan import KVError, SpanKind
from cache.rotary import Rotary
from tests.fakes.small_kv import HEAD_DIM, POLICIES, TOKENS, chunks, make, one_pass, positions, tokens


@pytest.mark.parametrize("storage", ["native", "rotated"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_snapshot_with_a_copy_rewinds_exactly(name: str, storage: str) -> None:
    cache, never = make(name, storage=storage, rows=2), make(name, storage=storage)
    chunks(cache, 7, row=1)
    chunks(never, 7)
    snapshot = cache.snapshot(1, copy=True)
    assert snapshot.bytes == sum(t.nbytes // 2 for t in cache._bank.by_slot)
    chunks(cache, 4, first=50, row=1)
    cache.restore(1, snapshot)
    cache.check_integrity()
    for a, b in zip(chunks(cache, 2, first=7, row=1), chunks(never, 2, first=7), strict=True):
        assert torch.equal(a, b)


def test_a_snapshot_into_room_takes_no_memory_and_rewinds_exactly() -> None:
    cache, never = make(rows=2), make()
    room = cache.snapshot_buffers()
    chunks(cache, 2, row=1)
    assert cache.snapshot(1, into=room).parts is room
    chunks(cache, 5, first=2, row=1)
    chunks(never, 7)
    snapshot = cache.snapshot(1, into=room)
    chunks(cache, 4, first=50, row=1)
    cache.restore(1, snapshot)
    for a, b in zip(chunks(cache, 2, first=7, row=1), chunks(never, 2, first=7), strict=True):
        assert torch.equal(a, b)


def test_a_snapshot_of_integers_rewinds_as_long_as_nothing_was_overwritten() -> None:
    cache, never = make(), make()
    chunks(cache, 2)
    chunks(never, 2)
    early = cache.snapshot(0)
    assert early.bytes == 0
    chunks(cache, 2, first=50)
    cache.restore(0, early)
    for a, b in zip(chunks(cache, 2, first=2), chunks(never, 2, first=2), strict=True):
        assert torch.equal(a, b)
    full = cache.snapshot(0)
    cache.restore(0, full)
    chunks(cache, 1, first=60)
    standing = cache.ledger(0)
    with pytest.raises(KVError, match=r"latent frames \[\d+(, \d+)*\] have been overwritten .*copy=True"):
        cache.restore(0, full)
    assert cache.ledger(0) is standing


def test_what_has_summed_attention_is_always_copied() -> None:
    cache = make("heavy-hitter")
    chunks(cache, 2)
    assert cache.snapshot(0).parts is not None


@pytest.mark.parametrize("storage", ["native", "rotated"])
def test_reset_forgets_everything(storage: str) -> None:
    for name in POLICIES:
        used, new = make(name, storage=storage), make(name, storage=storage)
        chunks(used, 9)
        used.reset(0)
        assert used.ledger(0).length == 0
        for a, b in zip(chunks(used, 6, first=20), chunks(new, 6, first=20), strict=True):
            assert torch.equal(a, b)


def test_flush_is_as_if_only_sink_and_last_frame_had_been() -> None:
    cache = make("sink", dtype=torch.float64)
    chunks(cache, 6)
    cache.flush(0)
    cache.check_integrity()
    cache.begin(0, 2)
    keys = one_pass(cache, tokens(6))[0]
    assert positions(cache, 0) == (0, 1, 2, 3, 4)
    assert cache.ledger(0).length == keys.shape[1] == 5 * TOKENS
    first, last = tokens(0)[0, 1], tokens(5)[0, 1]
    rotary = Rotary(HEAD_DIM)
    write = torch.arange(TOKENS)
    by_cell = {span.start: span for span in cache.ledger(0).spans}
    for start, source in ((0, first[:, :TOKENS]), (TOKENS, first[:, TOKENS:])):
        t = torch.full((TOKENS,), by_cell[start].position)
        turned = rotary.rotate(source.double(), *rotary.tables(t, write // 3, write % 3, dtype=torch.float64))
        torch.testing.assert_close(keys[:, start : start + TOKENS], turned, rtol=0, atol=1e-12)
    recent = next(span for span in cache.ledger(0).spans if span.kind is SpanKind.RECENT)
    t = torch.full((TOKENS,), 2)
    turned = rotary.rotate(last[:, TOKENS:].double(), *rotary.tables(t, write // 3, write % 3, dtype=torch.float64))
    torch.testing.assert_close(keys[:, recent.start : recent.stop], turned, rtol=0, atol=1e-12)


def test_scene_cut_is_seen_in_positions() -> None:
    cache = make("sink")
    chunks(cache, 2)
    cache.scene_cut(0)
    chunks(cache, 1)
    assert positions(cache, 0) == (0, 1, 2, 3, 20, 21)
    cache.check_integrity()
