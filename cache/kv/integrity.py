"""Owns the integrity check of a row: what must hold for its ledger under any policy. Host integers only."""

from __future__ import annotations

from itertools import pairwise

from cache.kv.plan import Ledger, SpanKind, gaps
from cache.kv.policies.base import KVPolicy


def check_row(policy: KVPolicy, row: int, ledger: Ledger) -> None:
    """Assert that a row's spans are cells of the policy's regions, disjoint, in order, and at allowed positions."""
    cells = {region.slots(cell) for region in policy.regions for cell in range(region.cells)}
    spans = (*ledger.spans, *ledger.pool)
    assert all((span.start, span.stop) in cells for span in spans), (row, spans)
    assert len({span.start for span in spans}) == len(spans), (row, spans)
    assert all(span.stop <= policy.attended_tokens for span in ledger.spans), (row, ledger)
    assert all(span.start >= policy.attended_tokens for span in ledger.pool), (row, ledger)
    assert all((span.kind is SpanKind.POOL) == (span in ledger.pool) for span in spans), (row, ledger)
    assert ledger.length <= policy.attended_tokens, (row, ledger.length)
    frames = [span.frame for span in ledger.spans if span.frame >= 0]
    assert frames == sorted(set(frames)), (row, frames)
    assert all(frame <= ledger.next_frame + policy.begin_frames for frame in frames), (row, frames, ledger.next_frame)
    if ledger.chunk:
        _check_chunk(policy, row, ledger)


def _check_chunk(policy: KVPolicy, row: int, ledger: Ledger) -> None:
    """With a chunk begun: one range without gaps, the chunk last, positions ascending and in the policy's range."""
    assert not gaps(ledger.spans), (row, ledger)
    start, stop = ledger.attended
    assert ledger.length == stop - start, (row, ledger.length, start, stop)
    assert ledger.spans[-len(ledger.chunk) :] == ledger.chunk, (row, ledger)
    allowed = policy.position_range(ledger)
    assert all(span.position in allowed for span in ledger.spans), (row, allowed, ledger)
    pairs = [(a.position + a.frames, b.position) for a, b in pairwise(ledger.spans)]
    assert all(end <= begin for end, begin in pairs), (row, pairs)
