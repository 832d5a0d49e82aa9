"""Sessions and their table: grace, limits, tokens, newest-wins feeds, exact counts. A real worker, identity engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from app.session.session import Session
from app.session.table import SessionLimits, SessionTable, TooManyError, UnknownSessionError
from app.worker.handle import BusyError, WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionState
from app.worker.stage_times import Stage, StageTimes
from pipelines.core.errors import ControlError
from pipelines.files.loader_options import LoaderOptions

WAIT_S = 20.0


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=32, height=24))
    with WorkerHandle(options, max_sessions=2) as client:
        client.wait_ready(60)
        yield client


@pytest.fixture
def table(client: WorkerHandle) -> Iterator[SessionTable]:
    table = SessionTable(client, SessionLimits(grace_s=30, per_minute=3))
    yield table
    table.stop()


def live(session: Session) -> Session:
    deadline_s = time.monotonic() + WAIT_S
    while session.proxy.state is not SessionState.LIVE:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    return session


def picture(value: int) -> np.ndarray:
    return np.full((24, 32, 3), value, np.uint8)


def test_a_session_outlives_its_last_connection_by_the_grace_time(table: SessionTable) -> None:
    session = table.open()
    session.connect()
    table.sweep(time.monotonic() + 1000)
    assert table.get(session.id) is session
    session.disconnect()
    table.sweep(time.monotonic() + 29)
    assert table.get(session.id) is session
    table.sweep(time.monotonic() + 31)
    with pytest.raises(UnknownSessionError, match="ended"):
        table.get(session.id)
    assert session.over


def test_the_number_and_the_rate_of_sessions_are_limited_at_once(table: SessionTable) -> None:
    first, second = table.open(), table.open()
    began_s = time.monotonic()
    with pytest.raises(BusyError, match="all 2 sessions"):
        table.open()
    assert time.monotonic() - began_s < 1
    first.close()
    second.close()
    table.open().close()
    with pytest.raises(TooManyError, match="3 sessions were opened within a minute"):
        table.open()


def test_a_stopped_table_refuses_and_ends_all(client: WorkerHandle) -> None:
    table = SessionTable(client)
    session = table.open()
    table.stop()
    assert session.over
    with pytest.raises(BusyError, match="shutting down"):
        table.open()


def test_only_the_token_opens_a_session(table: SessionTable) -> None:
    session = table.open()
    assert table.authorised(session.id, session.token) is session
    for name, token in ((session.id, "wrong"), (session.id, ""), ("nobody", session.token), (session.id, "naïve")):
        with pytest.raises(UnknownSessionError, match="no such session, or the token is wrong"):
            table.authorised(name, token)


def test_changes_are_checked_before_they_are_applied(table: SessionTable) -> None:
    session = table.open()
    with pytest.raises(ControlError, match="strength cannot be 7"):
        session.apply({"strength": 7})
    session.apply({"strength": 0.25, "prompt": "a cat:2 | a robot"})
    assert session.proxy.control.strength == 0.25


def test_a_feed_gives_the_newest_frame_and_counts_what_it_missed(table: SessionTable) -> None:
    session = live(table.open(prompt_only=False))

    async def watch() -> None:
        feed = session.feed()
        numbers = []
        for value in (10, 20, 30):
            numbers.append(session.submit(picture(value)))
            delivery = await feed.next(WAIT_S)
            assert delivery is not None
            assert int(delivery.frame.image[0, 0, 0]) == value
            assert delivery.frame.source_seq == numbers[-1]
        for value in (40, 50):  # both finished before the next look
            session.submit(picture(value))
            while session.proxy.count < (4 if value == 40 else 5):
                await asyncio.sleep(0.002)
        delivery = await feed.next(WAIT_S)
        assert delivery is not None
        assert (delivery.number, delivery.missed, int(delivery.frame.image[0, 0, 0])) == (5, 1, 50)
        assert await feed.next(0.01) is None
        asyncio.get_running_loop().call_later(0.05, session.close)
        assert await feed.next(WAIT_S) is None
        assert session.over
        feed.close()

    asyncio.run(watch())


def test_a_session_reads_its_count_and_times(table: SessionTable) -> None:
    session = live(table.open(prompt_only=False))
    for value in range(5):
        session.submit(picture(value))
        while session.proxy.count <= value:
            time.sleep(0.002)
    deadline_s = time.monotonic() + WAIT_S
    while session.read().accounting.out < 5:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    reading = session.read()
    counts = reading.accounting
    assert (counts.taken, counts.out, counts.in_flight) == (5, 5, 0)
    assert reading.stages[Stage.WAIT].p50_ms >= 0
    assert reading.trouble == ""


def test_percentiles_are_of_a_sliding_window() -> None:
    times = StageTimes()
    assert times.read() == {}
    for ms in range(1, 1001):
        times.add(Stage.PACK, float(ms))
    reading = times.read()[Stage.PACK]
    assert (reading.p50_ms, reading.p95_ms) == (881.0, 989.0)  # of 761..1000
