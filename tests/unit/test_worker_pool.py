"""Several workers with real processes: sessions are spread, and one worker's death or failure does not affect
others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from app.cli.live import worker_options
from app.worker.handle import BusyError, WorkerPhase
from app.worker.pool import WorkerPool
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionState
from pipelines.core.errors import InputError, WorkerError
from pipelines.files.loader_options import LoaderOptions
from tests.unit.test_worker_client import OPTIONS, until

FAILS = WorkerOptions(model="identity", engine=LoaderOptions(width=-5))


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool([OPTIONS, OPTIONS], max_sessions=3) as made:
        made.wait_ready(60)
        yield made


def test_sessions_spread_until_all_places_are_taken(pool: WorkerPool) -> None:
    opened = [pool.open() for _ in range(3)]
    assert sorted(worker.sessions for worker in pool.workers) == [1, 2]
    assert pool.sessions == 3
    with pytest.raises(BusyError, match="all 3 sessions"):
        pool.open()
    for session in opened:
        assert session.newest(0, 20.0) is not None
    opened[0].close()
    opened[1].close()
    until(lambda: pool.sessions == 1)
    emptier = min(pool.workers, key=lambda worker: worker.sessions)
    assert emptier.has(pool.open().name)


def test_a_killed_worker_s_sessions_come_back_and_the_others_never_stop(pool: WorkerPool) -> None:
    one, two = pool.open(), pool.open()
    assert one.newest(0, 20.0) is not None
    assert two.newest(0, 20.0) is not None
    hit, other = (worker for name in (one.name, two.name) for worker in pool.workers if worker.has(name))
    pid = hit.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: one.state is SessionState.OPENING)
    assert pool.status_of(one.name).phase is WorkerPhase.RESTARTING
    assert pool.status_of(two.name).phase is WorkerPhase.READY
    assert pool.status.phase is WorkerPhase.READY
    number, longest, last_s = 0, 0.0, time.monotonic()
    while one.state is not SessionState.LIVE:
        got = two.newest(number, 5.0)
        assert got is not None
        number, now_s = got[0], time.monotonic()
        longest, last_s = max(longest, now_s - last_s), now_s
    assert two.state is SessionState.LIVE
    assert longest < 1.0
    assert (hit.status.restarts, other.status.restarts, pool.status.restarts) == (1, 0, 1)
    counts = one.accounting
    assert counts.taken == counts.out + counts.dropped + counts.skipped + counts.in_flight


def test_one_that_fails_leaves_its_places_only() -> None:
    with WorkerPool([FAILS, OPTIONS], max_sessions=4) as pool:
        until(lambda: {worker.status.phase for worker in pool.workers} == {WorkerPhase.FAILED, WorkerPhase.READY}, 60)
        status = pool.status
        assert (status.phase, status.error) == (WorkerPhase.READY, None)
        assert "1 (auto): width cannot be -5" in status.text
        assert "2 (cpu): ready: " in status.text
        opened = [pool.open(), pool.open()]
        assert all(pool.workers[1].has(session.name) for session in opened)
        with pytest.raises(BusyError, match="all 2 sessions"):
            pool.open()


def test_when_all_fail_the_first_one_s_error_is_told() -> None:
    with WorkerPool([FAILS, FAILS]) as pool:
        with pytest.raises(WorkerError, match=r"width cannot be -5"):
            pool.wait_ready(60)
        until(lambda: pool.status.phase is WorkerPhase.FAILED)
        with pytest.raises(WorkerError, match=r"width cannot be -5"):
            pool.open()


def test_commas_part_devices_and_cores() -> None:
    one = worker_options("identity", LoaderOptions(width=8), 0)
    assert [(made.engine, made.threads) for made in one] == [(LoaderOptions(device="auto", width=8), 0)]
    two = worker_options("identity", LoaderOptions(device="cuda:0, cuda:1", width=8), 0)
    assert [made.engine for made in two] == [LoaderOptions(device=f"cuda:{n}", width=8) for n in (0, 1)]
    assert {made.threads for made in two} == {max(1, (os.cpu_count() or 1) // 2)}
    assert {made.threads for made in worker_options("identity", LoaderOptions(device="cpu,cpu"), 3)} == {3}
    with pytest.raises(InputError, match="single commas"):
        worker_options("identity", LoaderOptions(device="cuda:0,"), 0)
