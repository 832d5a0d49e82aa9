"""The worker handle with a real worker process: frames come back, counts are exact, a killed worker is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from app.worker.handle import BusyError, WorkerHandle, WorkerPhase
from app.worker.process import WorkerOptions
from app.worker.proxy import SessionProxy, SessionState
from app.worker.shared_frames import SharedMemoryError
from pipelines.core.controls import Control
from pipelines.core.errors import WorkerError
from pipelines.core.types import Picture
from pipelines.files.loader_options import LoaderOptions
from tests.unit.test_frames import room_for

OPTIONS = WorkerOptions(model="identity", engine=LoaderOptions(width=16, height=12))


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def picture(value: int) -> Picture:
    return np.full((12, 16, 3), value, np.uint8)


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    with WorkerHandle(OPTIONS, max_sessions=2) as made:
        made.wait_ready(60)
        yield made


@pytest.fixture
def session(client: WorkerHandle) -> Iterator[SessionProxy]:
    made = client.open(prompt_only=False)
    until(lambda: made.state is SessionState.LIVE)
    yield made
    made.close()


def settled(session: SessionProxy) -> bool:
    return session.accounting.in_flight == 0


def test_a_picture_comes_back_and_is_counted(session: SessionProxy) -> None:
    assert session.submit(picture(7)) is not None
    got = session.newest(0, 5.0)
    assert got is not None
    number, frame = got
    assert number == 1
    assert (frame.image == 7).all()
    assert frame.captured_ns is not None
    until(lambda: settled(session))
    assert (session.accounting.taken, session.accounting.out) == (1, 1)


def test_a_flood_is_never_queued(session: SessionProxy) -> None:
    for i in range(500):
        assert session.submit(picture(i % 256)) is not None
    until(lambda: settled(session))
    counts = session.accounting
    assert counts.taken == 500 == counts.out + counts.dropped
    until(lambda: bool((session.newest() or (0, None))[1] is not None))
    newest = session.newest()
    assert newest is not None
    assert newest[1].source_seq == 499  # the last one always arrives


def test_any_size_is_cut_to_the_stream_s(session: SessionProxy) -> None:
    assert session.submit(np.zeros((100, 30, 3), np.uint8)) is not None
    got = session.newest(0, 5.0)
    assert got is not None
    assert got[1].image.shape == (12, 16, 3)


def test_too_many_sessions_are_told_so(client: WorkerHandle, session: SessionProxy) -> None:
    other = client.open()
    with pytest.raises(BusyError, match="all 2 sessions"):
        client.open()
    other.close()
    client.open().close()


def test_a_killed_worker_is_replaced_and_sessions_go_on(client: WorkerHandle) -> None:
    session = client.open(control=Control(strength=0.3), prompt_only=True)
    session.set_control(Control(steps=1))
    assert session.newest(0, 10.0) is not None
    pid = client.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: session.state is SessionState.OPENING)
    before = session.newest()
    assert before is not None
    until(lambda: client.status.phase is WorkerPhase.READY)
    assert session.newest(before[0], 20.0) is not None
    assert (client.status.restarts, client.status.pid != pid) == (1, True)
    assert session.control == Control(strength=0.3, steps=1)
    counts = session.accounting
    assert counts.taken == counts.out + counts.dropped + counts.skipped + counts.in_flight
    session.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps shared memory in a file system of limited size")
def test_a_session_without_shared_memory_is_refused_and_the_others_go_on(
    client: WorkerHandle, session: SessionProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", room_for(0))
    with pytest.raises(SharedMemoryError, match="shared memory"):
        client.open()
    assert client.sessions == 1
    assert session.submit(picture(3)) is not None
    assert session.newest(session.count, 5.0) is not None
    monkeypatch.undo()
    client.open().close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps shared memory in a file system of limited size")
def test_sessions_that_wait_for_the_worker_end_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", room_for(2))
    with WorkerHandle(OPTIONS, max_sessions=2) as client:
        first, second = client.open(), client.open()
        client.wait_ready(60)
        until(lambda: second.over and first.state is SessionState.LIVE)
        assert "shared memory" in str(second.error)
        assert client.sessions == 1


def test_a_model_that_is_not_there_fails_with_its_message_and_is_not_retried() -> None:
    with WorkerHandle(WorkerOptions(model="identity", engine=LoaderOptions(width=-5))) as client:
        with pytest.raises(WorkerError, match=r"width cannot be -5\. Give 1 or more"):
            client.wait_ready(60)
        assert client.status.phase is WorkerPhase.FAILED
        assert client.status.restarts == 0
        with pytest.raises(WorkerError, match="width cannot be -5"):
            client.open()


def test_stopping_unlinks_everything() -> None:
    client = WorkerHandle(OPTIONS)
    client.start()
    session = client.open(prompt_only=True)
    assert session.newest(0, 60.0) is not None
    memory = session._outputs
    assert memory is not None
    client.stop()
    client.stop()
    assert session.state is SessionState.CLOSED
    with pytest.raises(FileNotFoundError):
        type(memory).attach(memory.spec)


def test_the_front_needs_no_torch() -> None:
    code = "import sys, app.worker.handle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
