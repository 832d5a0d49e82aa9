"""The key/value policies that select tokens or blocks on the device: the host's part, cell by cell.

The notation is that of tests/fakes/kv_notation.py: T selected tokens, M pooled block, P pending pooled block.
"""

from __future__ import annotations

import pytest

from cache.kv.policies import make_policy
from cache.kv.policies.packed import PackedPolicy
from tests.fakes.kv_notation import cells, operations, plans, walk


def test_participative_compression_begins_when_the_window_is_full() -> None:
    policy = make_policy(
        "participative",
        grid=(1, 1),
        window_frames=9,
        sink_frames=2,
        budget_frames=6,
        recent_frames=3,
        chunk_frames=2,
    )
    assert walk(policy, [2] * 7) == [
        "C0@0 C1@1 -- -- -- -- -- -- --",
        "S0@0 S1@1 C2@2 C3@3 -- -- -- -- --",
        "S0@0 S1@1 R2@2 R3@3 C4@4 C5@5 -- -- --",
        "S0@0 S1@1 R2@2 R3@3 R4@4 R5@5 C6@6 C7@7 --",
        "S0@0 S1@1 T@2 C8@6 C9@7 R5@3 R6@4 R7@5 --",
        "S0@0 S1@1 T@2 R8@4 R9@5 C10@6 C11@7 R7@3 --",
        "S0@0 S1@1 T@2 C12@6 R9@3 R10@4 R11@5 C13@7 --",
    ]
    steps = [operations(plan) for plan in plans(policy, [2] * 7)]
    assert steps[:4] == [[]] * 4
    assert steps[4:] == [
        ["first pass: tokens by queries of R2@0 R3@1 R4@2 to 2"],
        ["first pass: tokens by queries of T@0 R5@1 R6@2 to 2"],
        ["first pass: tokens by queries of T@0 R7@1 R8@2 to 2"],
    ]


def test_a_compression_that_leaves_cells_open_moves_after_it_has_chosen() -> None:
    policy = make_policy(
        "participative",
        grid=(1, 1),
        window_frames=9,
        sink_frames=1,
        budget_frames=3,
        recent_frames=1,
        chunk_frames=2,
    )
    plan = plans(policy, [1, 2, 2, 2, 2, 2])[5]
    assert operations(plan) == [
        "first pass: tokens by queries of R1@-5 R2@-4 R3@-3 R4@-2 R5@-1 R6@0 R7@1 to 1",
        "first pass: move 1 from 8 to 2",
    ]
    assert cells(policy, plan.ledger) == "S0@0 T@1 R8@2 C9@3 C10@4 -- -- -- --"


def test_deep_forcings_published_numbers() -> None:
    policy = make_policy("participative", grid=(30, 52))
    ledgers = [plan.ledger for plan in plans(policy, [3] * 12)]
    assert [ledger.length // 1560 for ledger in ledgers] == [3, 6, 9, 12, 15, 18, 21, 19, 19, 19, 19, 19]
    selected = [span for span in ledgers[-1].spans if span.frame < 0]
    assert sum(span.length for span in selected) == 3120
    assert [span.position for span in selected] == [10, 11]


def test_heavy_hitters_are_chosen_when_the_budget_is_exceeded() -> None:
    policy = make_policy("heavy-hitter", grid=(1, 1), heavy_frames=2, recent_frames=3, chunk_frames=2)
    assert walk(policy, [2] * 6) == [
        "C0@0 C1@1 -- -- -- -- --",
        "R0@0 R1@1 C2@2 C3@3 -- -- --",
        "R0@0 R1@1 R2@2 R3@3 C4@4 C5@5 --",
        "T@0 T@1 C6@5 R3@2 R4@3 R5@4 C7@6",
        "T@0 T@1 R6@3 C8@5 C9@6 R5@2 R7@4",
        "T@0 T@1 C10@5 R8@3 R9@4 C11@6 R7@2",
    ]
    assert [operations(plan) for plan in plans(policy, [2] * 5)][3:] == [
        ["tokens by attention of R0@0 R1@1 R2@2 to 0, 1"],
        ["tokens by attention of T@0 T@1 R3@2 R4@3 to 0, 1"],
    ]


def packed(**options: object) -> PackedPolicy:
    sizes = {"sink_frames": 2, "mid_blocks": 2, "block_frames": 2, "recent_frames": 2, "pooling": (2, 2, 1)}
    policy = make_policy("packed", grid=(2, 3), chunk_frames=2, **{**sizes, "pool_blocks": 3, **options})
    assert isinstance(policy, PackedPolicy)
    return policy


def test_packed_pools_what_ages_out_and_chooses_of_the_pool() -> None:
    assert walk(packed(), [2] * 8) == [
        "-- -- | C0@0 C1@1 -- -- -- -- | -- -- --",
        "-- -- | S0@0 S1@1 C2@2 C3@3 -- -- | -- -- --",
        "-- -- | S0@0 S1@1 R2@2 R3@3 C4@4 C5@5 | -- -- --",
        "-- M@2 | S0@0 S1@1 C6@6 C7@7 R4@4 R5@5 | P2@2 -- --",
        "M@2 M@4 | S0@0 S1@1 R6@6 R7@7 C8@8 C9@9 | P2@2 P4@4 --",
        "M@2 M@4 | S0@0 S1@1 C10@8 C11@9 R8@6 R9@7 | P2@0 P4@2 P6@4",
        "M@2 M@4 | S0@0 S1@1 R10@6 R11@7 C12@8 C13@9 | P8@4 P4@0 P6@2",
        "M@2 M@4 | S0@0 S1@1 C14@8 C15@9 R12@6 R13@7 | P8@2 P10@4 P6@0",
    ]
    assert [operations(plan) for plan in plans(packed(), [2] * 7)][3:] == [
        ["pool R2@2 R3@3 to 42", "first pass: blocks of P2@2 to 3"],
        ["pool R4@4 R5@5 to 45", "first pass: blocks of P2@2 P4@4 to 0, 3"],
        ["pool R6@6 R7@7 to 48", "first pass: blocks of P2@0 P4@2 P6@4 to 0, 3"],
        ["pool R8@6 R9@7 to 42", "first pass: blocks of P4@0 P6@2 P8@4 to 0, 3"],
    ]


def test_packed_by_recency_is_a_ring_of_blocks_and_scores_nothing() -> None:
    recent = packed(selection="recent")
    assert walk(recent, [2] * 7)[2:] == [
        "-- -- | S0@0 S1@1 R2@2 R3@3 C4@4 C5@5",
        "-- M2@2 | S0@0 S1@1 C6@6 C7@7 R4@4 R5@5",
        "M4@4 M2@2 | S0@0 S1@1 R6@6 R7@7 C8@8 C9@9",
        "M4@2 M6@4 | S0@0 S1@1 C10@8 C11@9 R8@6 R9@7",
        "M8@4 M6@2 | S0@0 S1@1 R10@6 R11@7 C12@8 C13@9",
    ]
    assert not recent.scores_queries
    assert packed().scores_queries


def test_pooled_tokens_stand_in_the_middle_of_their_boxes() -> None:
    mid = packed().regions[0]
    assert mid.tokens == 3
    assert list(zip(mid.t, mid.y, mid.x, strict=True)) == [(0.5, 0.5, 0.0), (0.5, 0.5, 1.0), (0.5, 0.5, 2.0)]
    published = PackedPolicy(grid=(30, 52)).regions[0]
    assert published.tokens == 182
    assert (published.t[0], published.y[0], published.x[0]) == (0.5, 1.5, 1.5)
    assert (published.t[-1], published.y[-1], published.x[-1]) == (2.5, 25.5, 49.5)


@pytest.mark.parametrize("selection", ["top-k", "recent"])
def test_packforcings_published_number_of_tokens(selection: str) -> None:
    policy = make_policy("packed", grid=(30, 52), selection=selection)
    lengths = [plan.ledger.length for plan in plans(policy, [4] * 40)]
    assert set(lengths[21:]) == {27_872}, "sink 12,480 + mid 2,912 + recent 6,240 + chunk 6,240"
    assert policy.attended_tokens == 27_872
    assert policy.capacity_tokens == 27_872 + (32 * 182 if selection == "top-k" else 0)


def test_flush_drops_what_was_chosen_and_pooled() -> None:
    policy = packed()
    ledger = plans(policy, [2] * 7)[-1].ledger
    flushed = policy.flush(ledger, 1)
    assert cells(policy, flushed) == "-- -- | S0@0 S1@1 -- -- -- R13@9 | -- -- --"
    assert cells(policy, policy.plan(flushed, 2).ledger) == "-- -- | S0@0 S1@1 R13@2 C14@3 C15@4 -- | -- -- --"
    heavy = make_policy("heavy-hitter", grid=(1, 1), heavy_frames=2, recent_frames=3, chunk_frames=2)
    assert cells(heavy, heavy.flush(plans(heavy, [2] * 5)[-1].ledger, 2)) == "-- -- -- R8@5 R9@6 -- --"
