"""Overload through the real server, worker and WebSocket: bounded age and memory, balanced counts, fair sharing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from websockets.sync.client import connect

from tests.fakes.live_process import LiveProcess, Streamer, live_process, wait_for

pytestmark = pytest.mark.alone

SIZE = (64, 48)
MAX = 4


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProcess]:
    """A server whose model generates 8 frames per second."""
    arguments = ("--model", "identity", "--size", "64x48", "--max-sessions", str(MAX))
    data = str(tmp_path_factory.mktemp("data"))
    with live_process(*arguments, "--data", data, engine="paced:0.125") as live:
        yield live


def memory_bytes(*processes: psutil.Process) -> list[int]:
    return [process.memory_info().rss for process in processes]


@pytest.mark.parametrize(
    ("early_s", "late_s", "growth"),
    [
        pytest.param((1.0, 2.5), (4.0, 5.5), 4 << 20),
        pytest.param((3.5, 6.5), (58.5, 61.5), 8 << 20, marks=pytest.mark.soak),
    ],
    ids=["6 s", "60 s"],
)
def test_sixty_frames_a_second_into_a_model_that_makes_eight(
    live: LiveProcess, early_s: tuple[float, float], late_s: tuple[float, float], growth: int
) -> None:
    session = live.open()
    processes = live.front, live.worker()
    began_s = time.monotonic()
    with Streamer(live, session, rate=60, size=SIZE) as client:
        time.sleep(early_s[1] - (time.monotonic() - began_s))
        before = memory_bytes(*processes)
        time.sleep(late_s[1] - (time.monotonic() - began_s))
        after = memory_bytes(*processes)
        client.stop()
        counts = client.settled()
        early_ms, late_ms = client.age_ms(*early_s), client.age_ms(*late_s)
    live.end(session)
    seconds = late_s[1]
    assert client.sent > 50 * seconds
    assert 6 * seconds < counts["out"] < 8.5 * seconds + 2
    assert counts["in"] == client.sent == counts["out"] + counts["dropped"] + counts["skipped"]
    assert abs(late_ms - early_ms) < 0.2 * early_ms, (early_ms, late_ms)
    assert early_ms < 600  # two ticks, and the wait for the next one
    assert all(b - a < growth for a, b in zip(before, after, strict=True)), (before, after)


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_four_sessions_share_and_the_fifth_is_told_busy_at_once(live: LiveProcess, seconds: float) -> None:
    sessions = [live.open() for _ in range(MAX)]
    with ExitStack() as stack:
        clients = [stack.enter_context(Streamer(live, session, rate=15, size=SIZE)) for session in sessions]
        wait_for(lambda: all(client.seen for client in clients))
        started = [len(client.seen) for client in clients]
        began_s = time.monotonic()
        refused = live.http.post("/v1/sessions")
        assert time.monotonic() - began_s < 1
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "busy"
        time.sleep(seconds)
        made = [len(client.seen) - start for client, start in zip(clients, started, strict=True)]
        for client in clients:
            client.stop()
        for client in clients:
            counts = client.settled()
            assert counts["in"] == client.sent == counts["out"] + counts["dropped"] + counts["skipped"]
    for session in sessions:
        live.end(session)
    mean = sum(made) / MAX
    assert mean > 1.2 * seconds  # 8 a second, in four parts
    assert all(abs(count - mean) <= max(1.0, 0.2 * mean) for count in made), made


def test_one_connection_too_many_is_closed_as_busy_at_once(live: LiveProcess) -> None:
    session = live.open()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(Streamer(live, session, rate=1, size=SIZE))
        began_s = time.monotonic()
        with connect(live.socket_url(session), compression=None) as fifth:
            fifth.send(f'{{"type":"hello","version":1,"token":"{session["token"]}"}}')
            wait_for(lambda: fifth.close_code is not None or closed(fifth))
            assert fifth.close_code == 1013
            assert "busy" in str(fifth.close_reason)
        assert time.monotonic() - began_s < 1
    live.end(session)


def closed(socket: object) -> bool:
    """Read, so that a closed connection is noticed."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import ClientConnection

    assert isinstance(socket, ClientConnection)
    try:
        socket.recv(1)
    except ConnectionClosed:
        return True
    return False


@pytest.mark.soak
def test_four_sessions_share_the_bundled_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the real model on all cores."""
    with live_process("--data", str(tmp_path_factory.mktemp("data")), "--size", "64x64") as live:
        sessions = [live.open(prompt="a cat") for _ in range(MAX)]
        with ExitStack() as stack:
            clients = [stack.enter_context(Streamer(live, session, rate=30, size=(64, 64))) for session in sessions]
            wait_for(lambda: all(len(client.seen) > 3 for client in clients), 60)
            started = [len(client.seen) for client in clients]
            time.sleep(30)
            made = [len(client.seen) - start for client, start in zip(clients, started, strict=True)]
        mean = sum(made) / MAX
        assert mean > 10
        assert all(abs(count - mean) <= 0.2 * mean for count in made), made
