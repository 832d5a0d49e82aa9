"""The key/value policies that keep whole frames, spelled out cell by cell. Frames have one token here.

The notation is that of tests/fakes/kv_notation.py: S sink, X context, R recent, C chunk; `R4@1` is frame 4 at
position 1.
"""

from __future__ import annotations

from typing import Any

import pytest

from cache.kv.plan import KVError, Ledger
from cache.kv.policies import POLICIES, KVPolicy, make_policy
from cache.kv.policies.dual import DualPolicy
from cache.kv.policies.windows import RebuildPolicy
from pipelines.video.past.rebuild import anchor_is_encoded, anchor_pictures
from tests.fakes.kv_notation import cells, operations, plans, walk


def policy(name: str, **options: Any) -> KVPolicy:
    return make_policy(name, grid=(1, 1), **options)


def test_full_keeps_everything_and_then_refuses() -> None:
    full = policy("full", max_frames=5, chunk_frames=2)
    assert walk(full, [1, 2, 2]) == [
        "C0@0 -- -- -- --",
        "R0@0 C1@1 C2@2 -- --",
        "R0@0 R1@1 R2@2 C3@3 C4@4",
    ]
    with pytest.raises(KVError, match="holds 5 latent frames and 6 are needed: reset it, raise max_frames"):
        walk(full, [2, 2, 2])


def test_a_window_is_a_ring_of_cells_with_positions_by_age() -> None:
    assert walk(policy("window", window_frames=5, chunk_frames=2), [2] * 5) == [
        "C0@0 C1@1 -- -- --",
        "R0@0 R1@1 C2@2 C3@3 --",
        "C4@3 R1@0 R2@1 R3@2 C5@4",
        "R4@1 C6@3 C7@4 R3@0 R5@2",
        "C8@3 R6@1 R7@2 C9@4 R5@0",
    ]


def test_eviction_moves_nothing_in_steady_state() -> None:
    for name, options in (("window", {}), ("sink", {}), ("deep-sink", {"window_frames": 21})):
        for plan in plans(policy(name, **options), [3] * 12):
            assert operations(plan) == []


def test_a_sink_stays_and_positions_count_cells() -> None:
    assert walk(policy("sink", window_frames=7, sink_frames=2, chunk_frames=2), [2] * 6) == [
        "C0@0 C1@1 -- -- -- -- --",
        "S0@0 S1@1 C2@2 C3@3 -- -- --",
        "S0@0 S1@1 R2@2 R3@3 C4@4 C5@5 --",
        "S0@0 S1@1 C6@5 R3@2 R4@3 R5@4 C7@6",
        "S0@0 S1@1 R6@3 C8@5 C9@6 R5@2 R7@4",
        "S0@0 S1@1 C10@5 R8@3 R9@4 C11@6 R7@2",
    ]


def test_a_sink_with_absolute_positions_keeps_every_index() -> None:
    sink = policy("sink", window_frames=7, sink_frames=2, chunk_frames=2, positions="absolute")
    assert walk(sink, [2] * 6)[3:] == [
        "S0@0 S1@1 C6@6 R3@3 R4@4 R5@5 C7@7",
        "S0@0 S1@1 R6@6 C8@8 C9@9 R5@5 R7@7",
        "S0@0 S1@1 C10@10 R8@8 R9@9 C11@11 R7@7",
    ]


def test_a_deep_sink_moves_up_to_the_recent_frames() -> None:
    assert walk(policy("deep-sink", window_frames=8, sink_frames=4, chunk_frames=2), [2] * 6) == [
        "C0@0 C1@1 -- -- -- -- -- --",
        "S0@0 S1@1 C2@2 C3@3 -- -- -- --",
        "S0@0 S1@1 S2@2 S3@3 C4@4 C5@5 -- --",
        "S0@0 S1@1 S2@2 S3@3 R4@4 R5@5 C6@6 C7@7",
        "S0@2 S1@3 S2@4 S3@5 C8@8 C9@9 R6@6 R7@7",
        "S0@4 S1@5 S2@6 S3@7 R8@8 R9@9 C10@10 C11@11",
    ]


def test_a_smaller_first_chunk_and_chunks_of_changing_size() -> None:
    assert walk(policy("sink", window_frames=5, sink_frames=1, chunk_frames=2), [1, 2, 2, 2, 1, 2]) == [
        "C0@0 -- -- -- --",
        "S0@0 C1@1 C2@2 -- --",
        "S0@0 R1@1 R2@2 C3@3 C4@4",
        "S0@0 C5@3 C6@4 R3@1 R4@2",
        "S0@0 R5@2 R6@3 C7@4 R4@1",
        "S0@0 C8@3 R6@1 R7@2 C9@4",
    ]


def test_of_a_window_of_noise_only_the_kept_frames_stay() -> None:
    rolling = policy("sink", window_frames=9, sink_frames=1, chunk_frames=6)
    assert walk(rolling, [2, 4, 6, 6, 6], keep=2) == [
        "C0@0 C1@1 -- -- -- -- -- -- --",
        "S0@0 R1@1 C2@2 C3@3 c4@4 c5@5 -- -- --",
        "S0@0 C4@3 R2@1 R3@2 C5@4 c6@5 c7@6 c8@7 c9@8",
        "S0@0 R4@1 C6@3 C7@4 R5@2 c8@5 c9@6 c10@7 c11@8",
        "S0@0 C8@3 R6@1 R7@2 C9@4 c10@5 c11@6 c12@7 c13@8",
    ]


def test_while_a_window_of_noise_fills_nothing_stays() -> None:
    rolling = policy("sink", window_frames=9, sink_frames=1, chunk_frames=6)
    ledger, seen = Ledger(), []
    for frames, keep in ((2, 0), (4, 0), (6, 2), (6, 2)):
        ledger = rolling.plan(ledger, frames, keep=keep).ledger
        seen.append(cells(rolling, ledger))
    assert seen == [
        "c0@0 c1@1 -- -- -- -- -- -- --",
        "c0@0 c1@1 c2@2 c3@3 -- -- -- -- --",
        "C0@0 C1@1 c2@2 c3@3 c4@4 c5@5 -- -- --",
        "S0@0 R1@1 C2@2 C3@3 c4@4 c5@5 c6@6 c7@7 --",
    ]


def test_an_adaptive_sink_is_tested_only_once_the_window_is_full() -> None:
    adaptive = policy("adaptive-sink", window_frames=4, sink_frames=2)
    assert walk(adaptive, [1] * 7) == [
        "C0@0 -- -- --",
        "S0@0 C1@1 -- --",
        "S0@0 S1@1 C2@2 --",
        "S0@0 S1@1 R2@2 C3@3",
        "S0@0 S1@1 C4@3 R3@2",
        "S0@0 S1@1 R4@2 C5@3",
        "S0@0 S1@1 C6@3 R5@2",
    ]
    assert [operations(plan) for plan in plans(adaptive, [1] * 7)] == [
        [],
        [],
        [],
        [],
        ["refresh S0@0 S1@1 by R3@3 below 0.2"],
        ["refresh S0@0 S1@1 by R4@3 below 0.2"],
        ["refresh S0@0 S1@1 by R5@3 below 0.2"],
    ]


def test_a_dual_cache_begins_with_its_context() -> None:
    dual = policy("dual", context_frames=3, local_frames=4, chunk_frames=2)
    assert walk(dual, [3, 2, 2, 2]) == [
        "C0@0 C1@1 C2@2 -- -- -- --",
        "X0@0 X1@1 X2@2 C3@3!1 C4@4!1 -- --",
        "X0@0 X1@1 X2@2 R3@3!1 R4@4!1 C5@5!1 C6@6!1",
        "X0@0 X1@1 X2@2 C7@5!1 C8@6!1 R5@3!1 R6@4!1",
    ]


def test_a_shot_of_a_dual_cache_carries_one_more_than_its_context() -> None:
    dual = policy("dual", context_frames=3, local_frames=4, chunk_frames=2)
    ledger = plans(dual, [3, 2])[-1].ledger
    ledger = dual.scene_cut(dual.scene_cut(ledger))
    assert cells(dual, ledger) == "-- -- -- -- -- -- --"
    context = dual.plan(ledger, 3).ledger
    assert cells(dual, context) == "C5@0 C6@1!1 C7@2!1 -- -- -- --"
    assert cells(dual, dual.plan(context, 2).ledger) == "X5@0 X6@1!1 X7@2!1 C8@3!2 C9@4!2 -- --"
    chosen = dual.plan(ledger, 3, shots=(1, 0, 4)).ledger
    assert cells(dual, dual.plan(chosen, 1).ledger) == "X5@0!1 X6@1 X7@2!4 C8@3!5 -- -- --"


def test_without_an_empty_context_only_later_shots_have_one() -> None:
    dual = policy("dual", context_frames=3, local_frames=4, chunk_frames=2, empty_context=False)
    assert walk(dual, [2, 2, 2]) == [
        "C0@0 C1@1 -- -- -- -- --",
        "R0@0 R1@1 C2@2 C3@3 -- -- --",
        "C4@2 C5@3 R2@0 R3@1 -- -- --",
    ]
    ledger = dual.scene_cut(plans(dual, [2, 2, 2])[-1].ledger)
    with pytest.raises(KVError, match="3 of the 3 context frames of the shot are missing"):
        dual.plan(ledger, 3, keep=0)
    context = dual.plan(ledger, 3).ledger
    assert cells(dual, dual.plan(context, 2).ledger) == "X6@0 X7@1 X8@2 C9@3!1 C10@4!1 -- --"


def test_the_context_is_shared_among_earlier_shots() -> None:
    dual = DualPolicy(grid=(1, 1))
    assert [dual.context_shots(n) for n in (0, 1, 2, 4, 6, 8)] == [
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 1, 1, 1),
        (0, 1, 2, 3, 3, 3),
        (0, 1, 2, 3, 4, 5),
        (2, 3, 4, 5, 6, 7),
    ]


def test_rebuilding_stands_at_the_same_positions_forever() -> None:
    rebuild = RebuildPolicy(grid=(1, 1))
    assert walk(rebuild, [3, 3]) == ["C0@0 C1@1 C2@2 -- -- --", "R0@0 R1@1 R2@2 C3@3 C4@4 C5@5"]
    assert [rebuild.context(n) for n in (0, 1, 3, 4, 9)] == [(), (0,), (0, 1, 2), (1, 2, 3), (6, 7, 8)]
    assert [anchor_is_encoded(rebuild, n) for n in (3, 4)] == [False, True]
    assert anchor_pictures(rebuild, time_factor=4) == 9
    assert RebuildPolicy(grid=(1, 1), keep_first=True).context(9) == (0, 7, 8)
    with pytest.raises(KVError, match="this policy rebuilds, so reset the row"):
        walk(rebuild, [3, 3, 3])


def test_flush_keeps_the_sink_and_the_last_frames() -> None:
    sink = policy("sink", window_frames=7, sink_frames=2, chunk_frames=2)
    ledger = plans(sink, [2] * 5)[-1].ledger
    flushed = sink.flush(ledger, 1)
    assert cells(sink, flushed) == "S0@0 S1@1 -- -- R9@6 -- --"
    plan = sink.plan(flushed, 2)
    assert operations(plan) == []
    assert cells(sink, plan.ledger) == "S0@0 S1@1 C10@3 C11@4 R9@2 -- --"
    assert cells(sink, sink.flush(plans(sink, [2])[-1].ledger, 1)) == "R0@0 R1@1 -- -- -- -- --"
    assert cells(sink, sink.flush(ledger, 0)) == "S0@0 S1@1 -- -- -- -- --"


def test_only_when_fewer_frames_remain_do_the_furthest_move_in() -> None:
    window = policy("window", window_frames=6, chunk_frames=2)
    flushed = window.flush(plans(window, [2, 2, 2])[-1].ledger, 1)
    assert cells(window, flushed) == "-- -- -- -- -- R5@5"
    plan = window.plan(flushed, 2)
    assert operations(plan) == ["move 1 from 5 to 0"]
    assert cells(window, plan.ledger) == "R5@0 C6@1 C7@2 -- -- --"


def test_a_scene_cut_puts_a_gap_in_time_between_old_and_new() -> None:
    sink = policy("sink", window_frames=5, sink_frames=1, chunk_frames=1, jump_frames=10)
    ledger = sink.scene_cut(plans(sink, [1, 1, 1])[-1].ledger)
    seen = []
    for _ in range(4):
        ledger = sink.plan(ledger, 1).ledger
        seen.append([span.position for span in ledger.spans])
        assert all(p in sink.position_range(ledger) for p in seen[-1])
    assert seen == [[0, 1, 2, 13], [0, 1, 2, 13, 14], [0, 1, 12, 13, 14], [0, 11, 12, 13, 14]]
    window = policy("window", window_frames=2, chunk_frames=1, jump_frames=10)
    ledger = window.scene_cut(plans(window, [1, 1])[-1].ledger)
    seen = []
    for _ in range(2):
        ledger = window.plan(ledger, 1).ledger
        seen.append([span.position for span in ledger.spans])
    assert seen == [[0, 11], [0, 1]], "nothing from before the cut is left, and the gap goes"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("sink", {"window_frames": 5}, "window_frames is 5, smaller than the sink of 3 and a chunk of 3: .*at least 6"),
    ("sink", {"positions": "relative"}, "positions is 'relative'; choose one of slot, absolute, realigned"),
    ("sink", {"sink_frames": -1}, "sink_frames is -1"),
    ("window", {"window_frames": 2}, "window_frames is 2"),
    ("window", {"sink_frames": 1}, "use the policy 'sink'"),
    ("deep-sink", {"positions": "absolute"}, "a deep sink is re-aligned"),
    ("adaptive-sink", {"sink_frames": 0}, "needs at least 1, or use the policy 'window'"),
    ("adaptive-sink", {"threshold": 2.0}, "threshold is 2.0"),
    ("full", {"max_frames": 2}, "max_frames is 2 and a chunk has 3 frames: raise max_frames"),
    ("full", {"chunk_frames": 0}, "chunk_frames is 0"),
    ("full", {"jump_frames": -1}, "jump_frames is -1"),
    ("participative", {"budget_frames": 14}, "budget_frames is 14; .*at least 15"),
    ("participative", {"window_frames": 18}, "window_frames is 18, smaller than the budget of 16 and a chunk of 3"),
    ("participative", {"recent_frames": -1}, "recent_frames -1"),
    ("heavy-hitter", {"heavy_frames": 0}, "heavy_frames is 0"),
    ("heavy-hitter", {"query_stride": 0}, "query_stride is 0"),
    ("r1-kv", {"window_frames": 5}, "window_frames is 5, .* 3 recent frames and a chunk of 3: make it at least 6"),
    ("r1-kv", {"recent_frames": 0}, r"recent_frames 0 \(1 or more\)"),
    ("r1-kv", {"importance": 1.5}, "importance is 1.5"),
    ("r1-kv", {"pool_tokens": 4}, "pool_tokens is 4; it must be odd"),
    ("r1-kv", {"query_stride": 0}, "query_stride is 0"),
    ("packed", {"selection": "best"}, "selection is 'best'; choose one of top-k, recent"),
    ("packed", {"recent_frames": 2}, "recent_frames is 2, and blocks of 4 leave it at once: make it at least 3"),
    ("packed", {"pooling": (3, 1, 1)}, r"pooling is \(3, 1, 1\) for blocks of 4 frames"),
    ("packed", {"pool_blocks": 3, "pooling": (2, 1, 1)}, "pool_blocks is 3; 16 are selected from them"),
    ("packed", {"mid_blocks": 0}, r"mid_blocks 0"),
    ("dual", {"context_frames": -1}, "context_frames is -1"),
    ("dual", {"local_frames": 2}, "local_frames is 2; it counts the chunk, so make it at least 3"),
    ("rebuild", {"context_frames": 0}, "context_frames is 0"),
    ("sink", {"windows": 5}, "the policy 'sink' has no option windows; it has chunk_frames, jump_frames"),
    ("sinks", {}, "unknown KV policy 'sinks'; choose one of full, window, sink"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_numbers_that_cannot_work_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(KVError, match=message):
        policy(name, **options)


def test_a_grid_without_tokens_is_refused() -> None:
    with pytest.raises(KVError, match=r"grid is \(0, 4\)"):
        make_policy("full", grid=(0, 4))


@pytest.mark.parametrize("name", POLICIES)
def test_a_chunk_that_a_policy_was_not_made_for_is_refused(name: str) -> None:
    made = make_policy(name, grid=(4, 4))
    with pytest.raises(KVError, match="7 latent frames"):
        made.plan(Ledger(), 7)
    if name not in ("rebuild", "dual"):
        with pytest.raises(KVError, match="keep is -1"):
            made.plan(Ledger(), 1, keep=-1)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_says_where_it_comes_from(name: str) -> None:
    text = POLICIES[name].__doc__ or ""
    assert any(mark in text for mark in ("(25", "(26", "(23", "krea")), text


def test_a_context_must_come_whole() -> None:
    dual = policy("dual", context_frames=3, local_frames=4, chunk_frames=2)
    with pytest.raises(KVError, match=r"4 latent frames .*3 of the 3 context frames"):
        dual.plan(Ledger(), 4)
    with pytest.raises(KVError, match="give one index per frame"):
        dual.plan(Ledger(), 3, shots=(0, 1))
    assert walk(dual, [1, 2, 1])[-1] == "X0@0 X1@1 X2@2 C3@3!1 -- -- --"
