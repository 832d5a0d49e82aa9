"""The event loop's watch: blocking callbacks of every kind are named and measured by both clocks."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from app.api.loop_watch import LoopReading, LoopWatch


def spin(seconds: float) -> None:
    """Use the CPU for that long, by CPU time."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


async def step(block: Callable[[], None]) -> None:
    async def blocking_step() -> None:
        block()

    await asyncio.create_task(blocking_step())


async def plain(block: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(block)
    await asyncio.sleep(0.001)


async def later(block: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(0.001, block)
    await asyncio.sleep(0.003)


async def reader(block: Callable[[], None]) -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()

    def read() -> None:
        ours.recv(1)
        block()

    loop.add_reader(ours, read)
    theirs.send(b"x")
    await asyncio.sleep(0.003)
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


def watched(kind: Callable[[Callable[[], None]], object], block: Callable[[], None]) -> tuple[LoopReading, list[str]]:
    told: list[str] = []

    async def main() -> LoopReading:
        with LoopWatch(asyncio.get_running_loop(), told.append) as watch:
            await kind(block)  # type: ignore[misc]
            await asyncio.sleep(0)
            return watch.read()

    return asyncio.run(main()), told


@pytest.mark.parametrize(
    ("kind", "name"), [(step, "blocking_step"), (plain, "<lambda>"), (later, "<lambda>"), (reader, "read")]
)
def test_a_callback_of_any_kind_that_blocks_is_measured_and_named(
    kind: Callable[[Callable[[], None]], object], name: str
) -> None:
    reading, told = watched(kind, lambda: spin(0.02))
    assert 0.02 <= reading.max_cpu_s <= reading.max_s + 0.001
    assert (reading.blocked >= 1, reading.blocked_cpu) == (True, 1)
    assert name in reading.worst
    assert any(name in sentence for sentence in told)


def test_waiting_is_wall_time_only() -> None:
    reading, _ = watched(step, lambda: time.sleep(0.02))
    assert reading.max_s >= 0.02
    assert reading.max_cpu_s < 0.01
    assert (reading.blocked >= 1, reading.blocked_cpu) == (True, 0)


def test_quick_callbacks_are_counted_and_nothing_else() -> None:
    async def many(block: Callable[[], None]) -> None:
        for _ in range(100):
            await plain(block)

    reading, told = watched(many, lambda: None)
    assert reading.callbacks >= 200
    assert reading.blocked_cpu == 0
    assert told == [] or reading.blocked  # a busy machine


def test_only_its_own_loop_is_watched_and_only_until_it_is_stopped() -> None:
    before = asyncio.Handle._run  # type: ignore[attr-defined]
    loop = asyncio.new_event_loop()
    watch = LoopWatch(loop)
    watch.start()
    asyncio.run(plain(lambda: spin(0.01)))
    assert watch.read() == LoopReading()
    watch.stop()
    watch.stop()
    loop.run_until_complete(plain(lambda: spin(0.01)))
    loop.close()
    assert watch.read() == LoopReading()
    assert asyncio.Handle._run is before  # type: ignore[attr-defined]
