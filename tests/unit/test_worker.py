"""The worker's loop in this process: the newest input wins, counts are exact, an error ends one session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest

from app.worker.messages import (
    ChangeControl,
    ChangeSource,
    CloseSession,
    InputAdmitted,
    InputTaken,
    SessionClosed,
    SessionEnded,
    SessionNotice,
    SessionStats,
    StreamOpened,
)
from app.worker.process import WorkerOptions, describe, open_engine
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, ModelError
from pipelines.files.loader_options import LoaderOptions
from pipelines.identity import IdentityEngine
from tests.fakes.worker_bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(IdentityEngine(width=2, height=2, latency_ticks=1))
    yield made
    made.close()


def exact(stats: SessionStats) -> bool:
    return stats.seen + stats.generated == stats.out + stats.dropped + stats.skipped + stats.in_flight


def test_newest_input_wins_and_replaced_ones_are_counted(bench: Bench) -> None:
    front = bench.front()
    for seq in range(5):
        front.post(seq)
    for _ in range(3):
        bench.worker.run_once()
    front.collect()
    assert front.sources == [4]
    assert replace(bench.stats(), wait_ms=0.0) == SessionStats(
        session="a", seen=5, generated=0, out=1, dropped=4, skipped=0, in_flight=0, tick_ms=0.0
    )
    kinds = Counter(type(message) for message in front.heard)
    assert kinds[StreamOpened] == 1
    assert kinds[InputTaken] == 5


def test_a_waiting_frame_is_replaced_by_a_newer_one(bench: Bench) -> None:
    front = bench.front()
    bench.pipe.send(ChangeControl(session="a", control=Control(depth=1)))
    for seq in range(3):
        front.post(seq)
        bench.worker.run_once()
    assert bench.stats().in_flight == 1  # 0 finished in the second round; 2 has replaced 1
    assert exact(bench.stats())
    for _ in range(4):
        bench.worker.run_once()
    front.collect()
    assert front.sources == [0, 2]
    assert front.of(InputAdmitted) == [InputAdmitted(session="a", captured_ns=seq) for seq in (0, 2)]
    assert (bench.stats().out, bench.stats().dropped) == (2, 1)


def test_without_room_for_outputs_the_oldest_are_dropped_and_counted(bench: Bench) -> None:
    front = bench.front(outputs=2)
    for seq in range(8):
        front.post(seq)
        bench.worker.run_once()
    front.collect(release=False)
    assert front.sources == [0, 1]
    stats = bench.stats()
    assert exact(stats)
    assert stats.out == 2
    assert stats.dropped > 0


def test_prompt_only_is_paced_by_the_stream_s_rate(bench: Bench) -> None:
    front = bench.front(prompt_only=True)
    bench.worker.run_once()
    session = bench.worker._sessions["a"]
    due_ns = session._next_due_ns
    for step in range(1, 24):
        session.admit(due_ns + step * 41_666_667 // 24)  # one period of 1/24 s in small steps
        bench.worker._engine.tick()
        bench.worker._publish(session)
    assert bench.stats().generated in (2, 3)
    front.collect()
    assert set(front.sources) == {None}
    assert exact(bench.stats())


def test_pacing_does_not_catch_up_after_a_pause(bench: Bench) -> None:
    bench.front(prompt_only=True)
    bench.worker.run_once()
    session = bench.worker._sessions["a"]
    later_ns = session._next_due_ns + 10_000_000_000
    session.admit(later_ns)
    session.admit(later_ns + 1)
    assert bench.stats().generated == 2


def test_a_change_of_source_keeps_the_count(bench: Bench) -> None:
    front = bench.front()
    front.post(0)
    bench.worker.run_once()
    bench.pipe.send(ChangeSource(session="a", prompt_only=True, posted=1))
    front.post(1)
    for _ in range(4):
        bench.worker.run_once()
    bench.pipe.send(ChangeSource(session="a", prompt_only=False, posted=2))
    bench.worker.run_once()
    stats = bench.stats()
    assert exact(stats)
    assert stats.seen == 2
    assert stats.generated >= 1
    assert stats.dropped == 1


def test_a_picture_that_follows_a_change_of_source_is_not_dropped_with_what_came_before(bench: Bench) -> None:
    """The worker may notice it in the mailbox before it receives the change."""
    front = bench.front(prompt_only=True)
    bench.worker.run_once()
    bench.pipe.send(ChangeSource(session="a", prompt_only=False, posted=0))
    front.post(0)
    for _ in range(4):
        bench.worker.run_once()
    front.collect()
    assert front.of(InputAdmitted) == [InputAdmitted(session="a", captured_ns=0)]
    assert bench.stats().dropped == 0
    assert exact(bench.stats())


class Refusing(IdentityEngine):
    """An engine whose first stream fails on push and refuses controls."""

    def open(self, control: Control | None = None, frame_rate: Fraction = Fraction(24)):  # type: ignore[no-untyped-def]  # noqa: ANN201
        stream = super().open(control, frame_rate)

        def fail(_: object) -> bool:
            raise ModelError("The stream is broken.", "Mend it.")

        def refuse(_: object) -> int:
            raise ControlError("Not now.", "Later.")

        if len(self._streams) == 1:
            stream.push = fail  # type: ignore[method-assign]
            stream.apply = refuse  # type: ignore[method-assign]
        return stream


def test_an_engine_error_ends_one_session_and_leaves_the_others() -> None:
    bench = Bench(Refusing(width=2, height=2, latency_ticks=0))
    one, two = bench.front("a"), bench.front("b")
    bench.pipe.send(ChangeControl(session="a", control=Control(depth=1)))
    bench.worker.run_once()
    one.collect()
    assert one.of(SessionNotice) == [SessionNotice(session="a", text="Not now. Later.")]
    one.post(0)
    two.post(0)
    bench.worker.run_once()
    two.collect()
    assert two.of(SessionEnded) == [SessionEnded(session="a", message="The stream is broken.", remedy="Mend it.")]
    assert two.sources == [0]
    bench.pipe.send(CloseSession(session="a"))
    bench.worker.run_once()
    two.collect()
    assert SessionClosed(session="a") in two.heard
    bench.close()


def test_options_make_an_identity_engine_without_torch() -> None:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=8, height=6))
    engine, threads = open_engine(options, print)
    ready = describe(engine, threads, options)
    assert (ready.info.width, ready.info.height, ready.threads, ready.why) == (8, 6, 1, "")
    assert ready.controls["strength"] == 0.5
