"""Turns on shared threads: who has used little goes first, and always finds a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from app.session.turns import Turns


class ByHand(Executor):
    """An executor whose jobs run when the test says so, in the order in which they were begun."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self.begun.append(lambda: fn(*arguments, **named))
        return Future()


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def takes(clock: Clock, seconds: float, done: list[str], name: str) -> Callable[[], None]:
    def job() -> None:
        clock.now_s += seconds
        done.append(name)

    return job


def test_results_and_errors_come_back_and_one_user_s_jobs_begin_in_order(pool: ThreadPoolExecutor) -> None:
    turns, began = Turns(pool, 2), list[int]()
    lane = turns.of("a")
    futures = [lane.submit(lambda i=i: (began.append(i), i * 2)[1]) for i in range(50)]  # type: ignore[misc]
    assert [future.result(5) for future in futures] == [2 * i for i in range(50)]
    assert sorted(began) == list(range(50))
    with pytest.raises(ZeroDivisionError):
        lane.submit(lambda: 1 // 0).result(5)
    assert asyncio.run(in_loop(lane)) == 7
    assert list(lane.map(abs, [-1, 2])) == [1, 2]


async def in_loop(lane: Executor) -> int:
    return await asyncio.get_running_loop().run_in_executor(lane, lambda: 7)


def test_who_has_used_least_is_next() -> None:
    hand, clock, done = ByHand(), Clock(), list[str]()
    turns = Turns(hand, 1, clock=clock)
    for number in range(3):
        turns.submit("large", takes(clock, 1.0, done, f"large {number}"))
    for number in range(3):
        turns.submit("small", takes(clock, 0.01, done, f"small {number}"))
    while hand.begun:
        hand.begun.pop(0)()
    assert done == ["large 0", "small 0", "small 1", "small 2", "large 1", "large 2"]


def test_the_last_thread_is_kept_for_those_who_have_used_little() -> None:
    hand, clock, done = ByHand(), Clock(), list[str]()
    turns = Turns(hand, 2, clock=clock)
    turns.submit("small", takes(clock, 0.01, done, "small 0"))
    for number in range(4):
        turns.submit("large", takes(clock, 0.6, done, f"large {number}"))
    assert len(hand.begun) == 2  # nobody has used anything yet
    hand.begun.pop(0)()
    hand.begun.pop(0)()
    assert len(hand.begun) == 1  # of the large ones
    turns.submit("small", takes(clock, 0.01, done, "small 1"))
    assert len(hand.begun) == 2
    hand.begun.pop(1)()
    assert done[-1] == "small 1"
    assert len(hand.begun) == 1


def test_a_user_alone_gets_all_threads_and_time_used_is_forgotten() -> None:
    hand, clock, done = ByHand(), Clock(), list[str]()
    turns = Turns(hand, 2, clock=clock)
    turns.submit("small", takes(clock, 0.01, done, "small"))
    hand.begun.pop(0)()
    turns.submit("large", takes(clock, 2.0, done, "large"))
    hand.begun.pop(0)()
    clock.now_s += 30
    for number in range(3):
        turns.submit("large", takes(clock, 2.0, done, f"large {number}"))
    assert len(hand.begun) == 2
    while hand.begun:
        hand.begun.pop(0)()
    clock.now_s += 60
    turns.submit("other", takes(clock, 0.0, done, "other"))
    hand.begun.pop(0)()
    assert set(turns._accounts) <= {"other"}


def test_what_was_cancelled_is_skipped_and_a_shut_down_executor_leaves_nobody_waiting() -> None:
    executor = ThreadPoolExecutor(1)
    turns, go, ran = Turns(executor, 1), threading.Event(), list[str]()
    first = turns.submit("a", lambda: go.wait(10))
    second = turns.submit("a", lambda: ran.append("second"))
    third = turns.submit("a", lambda: ran.append("third"))
    assert second.cancel()
    go.set()
    assert first.result(5)
    third.result(5)
    assert ran == ["third"]
    executor.shutdown()
    with pytest.raises(CancelledError):
        turns.submit("a", lambda: None).result(5)


def test_a_neighbour_with_long_jobs_on_many_connections_costs_at_most_a_little(pool: ThreadPoolExecutor) -> None:
    turns, over = Turns(pool, 2), threading.Event()

    def hog(user: str) -> None:
        while not over.is_set():
            turns.submit(user, lambda: time.sleep(0.05)).result(10)

    hogs = [threading.Thread(target=hog, args=(f"hog {i % 2}",)) for i in range(16)]
    for thread in hogs:
        thread.start()
    try:
        waits = list[float]()
        for _ in range(15):
            began_s = time.monotonic()
            turns.submit("honest", lambda: time.sleep(0.003)).result(10)
            waits.append(time.monotonic() - began_s)
            time.sleep(0.03)
    finally:
        over.set()
        for thread in hogs:
            thread.join()
    assert sorted(waits)[len(waits) // 2] < 0.05  # without turns: 16 × 50 ms on 2 threads, 0.4 s
