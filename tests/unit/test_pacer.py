"""Frames of a chunk are released evenly; the next chunk is requested in time; at most two wait. A simulated clock."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from app.worker.pacer import Pacer
from pipelines.core.types import Frame

MS = 1_000_000
RATE, CHUNK = 20, 8
PERIOD_NS = 1_000_000_000 // RATE
PICTURE = np.zeros((2, 2, 3), np.uint8)


def frames(count: int, first: int = 0) -> list[Frame]:
    return [Frame(image=PICTURE, pts=n, time_base=Fraction(1, RATE), seq=n) for n in range(first, first + count)]


def leaving(pacer: Pacer, start_ns: int, end_ns: int, step_ns: int = MS) -> Iterator[tuple[int, int]]:
    """Yield (seq, time) of the frames released when the pacer is polled every `step_ns`."""
    for now_ns in range(start_ns, end_ns, step_ns):
        while (frame := pacer.due(now_ns)) is not None:
            pacer.release()
            yield frame.seq, now_ns


def test_a_chunk_leaves_evenly_from_its_arrival_on() -> None:
    pacer = Pacer()
    assert pacer.add(frames(CHUNK), 500 * MS, max_frames=CHUNK) == []
    left = list(leaving(pacer, 500 * MS, 2000 * MS))
    assert [seq for seq, _ in left] == list(range(CHUNK))
    assert left[0][1] == 500 * MS
    assert set(np.diff([at for _, at in left])) == {PERIOD_NS}


def test_whoever_looks_late_finds_all_that_is_due_and_the_others_keep_their_times() -> None:
    pacer = Pacer()
    pacer.add(frames(CHUNK), 0, max_frames=CHUNK)
    left = list(leaving(pacer, 0, 1000 * MS, step_ns=3 * PERIOD_NS + 10 * MS))
    assert [seq for seq, _ in left] == list(range(CHUNK))
    assert all(0 <= at - seq * PERIOD_NS < 3 * PERIOD_NS + 10 * MS for seq, at in left)


@pytest.mark.parametrize("took_ms", [40, 200, 380])
def test_a_chunk_is_asked_for_so_that_it_comes_when_the_last_one_ends(took_ms: int) -> None:
    """A machine that takes `took_ms` for a chunk of 400 ms: playback never stalls, and little is queued."""
    pacer, made, ready_ns, left, maximum = Pacer(), 0, None, [], 0
    for now_ns in range(0, 8000 * MS, MS):
        if ready_ns is not None and now_ns >= ready_ns:
            assert pacer.add(frames(CHUNK, made), now_ns, max_frames=CHUNK) == []
            made, ready_ns = made + CHUNK, None
        if ready_ns is None and pacer.should_request(now_ns):
            pacer.requested(now_ns)
            ready_ns = now_ns + took_ms * MS
        maximum = max(maximum, len(pacer))
        while pacer.due(now_ns) is not None:
            pacer.release()
            left.append(now_ns)
    gaps = np.diff(left[CHUNK:])
    assert gaps.max() <= PERIOD_NS + MS
    assert maximum <= CHUNK + 0.35 * took_ms * MS / PERIOD_NS + 1


def test_a_slow_machine_s_frames_are_counted_from_their_arrival() -> None:
    pacer = Pacer()
    pacer.add(frames(CHUNK), 0, max_frames=CHUNK)
    list(leaving(pacer, 0, 1000 * MS))
    pacer.add(frames(CHUNK, CHUNK), 1000 * MS, max_frames=CHUNK)
    left = [at for _, at in leaving(pacer, 1000 * MS, 2000 * MS)]
    assert left[0] == 1000 * MS
    assert set(np.diff(left)) == {PERIOD_NS}


def test_more_than_two_chunks_never_wait_and_the_oldest_give_way() -> None:
    pacer = Pacer()
    assert pacer.add(frames(2 * CHUNK), 0, max_frames=CHUNK) == []
    lost = pacer.add(frames(CHUNK, 2 * CHUNK), 0, max_frames=CHUNK)
    assert [frame.seq for frame in lost] == list(range(CHUNK))
    assert len(pacer) == 2 * CHUNK


def test_a_refusal_is_tried_again_after_a_while() -> None:
    pacer = Pacer()
    assert pacer.should_request(0)
    pacer.refused(0)
    assert not pacer.should_request(MS)
    assert 0 < pacer.wait_ns(MS, requests=True) < 100 * MS
    assert pacer.should_request(MS + pacer.wait_ns(MS, requests=True))


def test_nothing_to_do_is_a_long_wait() -> None:
    assert Pacer().wait_ns(5 * MS, requests=False) >= 500 * MS
