"""The WebSocket endpoint when things end or break: a killed worker, a stopping server; and the client of
docs/api.md."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import fastapi
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from app.api.asyncapi import router as asyncapi_router
from app.api.context import ApiContext
from app.api.sessions import router as sessions_router
from app.api.stream.socket import router
from app.server.limits import ServerLimits
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions, run_worker
from pipelines.core.controls import Control
from tests.fakes.live_engines import open_hungry
from tests.fakes.stream_server import noise, peer, stream_server, wait_until, worker_client

ROOT = Path(__file__).parents[2]


def routes(context: ApiContext) -> fastapi.APIRouter:
    found = fastapi.APIRouter()
    for part in (router, sessions_router, asyncapi_router):
        found.include_router(part(context))
    return found


@pytest.fixture(scope="module")
def client() -> Iterator[WorkerHandle]:
    with worker_client() as client:
        yield client


def test_a_stopping_table_says_so_and_closes_with_1001(client: WorkerHandle, tmp_path: Path) -> None:
    with stream_server(client, tmp_path, routes) as server:
        session = server.table.open()
        with peer(server, session) as watcher:
            watcher.text("ready")
            stopper = threading.Thread(target=server.table.stop)
            stopper.start()
            assert watcher.closed() == (1001, "Zoetrope is shutting down.")
            assert watcher.seen[-1]["type"] == "ended"
            stopper.join()


def test_a_stopping_server_does_not_wait_for_its_connections(client: WorkerHandle, tmp_path: Path) -> None:
    threads = threading.active_count()
    with stream_server(client, tmp_path, routes) as server:
        session = server.table.open()
        with peer(server, session) as watcher:
            watcher.text("ready")
            began_s = time.monotonic()
            server.stop()
            assert watcher.closed()[0] == 1012
            assert time.monotonic() - began_s < 5
        assert session.read().connections == 0
    wait_until(lambda: threading.active_count() <= threads)


def test_a_killed_worker_is_told_at_once_and_the_stream_goes_on(tmp_path: Path) -> None:
    with worker_client() as client, stream_server(client, tmp_path, routes) as server:
        session = server.table.open(prompt_only=False)
        with peer(server, session) as watcher:
            watcher.text("ready")
            watcher.say(type="control", id=1, changes={"strength": 0.75})
            watcher.text("applied")
            watcher.picture(noise(1), 1)
            assert watcher.frame()[1] == noise(1).tobytes()
            pid = client.status.pid
            assert pid is not None
            began_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            watcher.text("restarting")
            assert time.monotonic() - began_s < 1
            assert watcher.text("ready")["controls"]["strength"] == 0.75
            watcher.picture(noise(2), 2)
            header, data = watcher.frame()
            assert (header.source_seq, data) == (2, noise(2).tobytes())
            assert header.seq == 2
        assert session.read().accounting.taken == 2


@pytest.mark.soak
def test_out_of_memory_ends_one_stream_with_numbers_and_the_other_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker with a real image engine; its denoiser raises torch.OutOfMemoryError for more than 4 slots."""
    monkeypatch.setattr("app.worker.link.run_worker", partial(run_worker, opens=partial(open_hungry, 4)))
    plan = Control(steps=3, depth=3)
    with WorkerHandle(WorkerOptions(model="identity")) as client, stream_server(client, tmp_path, routes) as server:
        client.wait_ready(60)
        calm = server.table.open(control=Control(steps=2, depth=2))  # who has the most in flight ends
        with peer(server, calm) as first:
            first.text("ready")
            for _ in range(5):
                first.frame()
            greedy = server.table.open(control=plan)
            with peer(server, greedy) as second:
                message = second.text("ended")
                assert second.closed()[0] == 1000
            assert "cpu has too little memory for" in message["message"]
            assert re.search(r"^[34] slots have run: set depth 2 or steps 2, or start with --size", message["remedy"])
            for _ in range(10):
                first.frame()
            assert not calm.over
            third = server.table.open(control=Control(steps=1, depth=1))  # as it was told
            with peer(server, third) as again:
                again.text("ready")
                again.frame()
        assert client.status.restarts == 0
        counts = calm.read().accounting
        assert counts.taken == counts.out + counts.dropped + counts.skipped + counts.in_flight


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_200_sessions_leave_nothing_behind(client: WorkerHandle, tmp_path: Path) -> None:
    """Half end by close, half by a client that disconnects; allocators may keep 8 MiB."""

    def held() -> dict[str, int]:
        return {
            "threads": sum(not thread.name.startswith("codec") for thread in threading.enumerate()),  # a pool of 2
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "shared memory": Path("/proc/self/maps").read_text().count("/psm_"),
        }

    def back() -> bool:
        return all(count <= before[what] for what, count in held().items())

    with stream_server(client, tmp_path, routes) as server:
        idle, before, memory_bytes = server.tasks(), held(), 0
        for turn in range(210):
            if turn == 10:  # warm
                wait_until(lambda: not server.table.sessions and server.tasks() <= idle)
                before, memory_bytes = held(), psutil.Process().memory_info().rss
            session = server.table.open(prompt_only=False)
            with peer(server, session) as watcher:
                watcher.text("ready")
                watcher.picture(noise(turn), turn)
                assert watcher.frame()[1] == noise(turn).tobytes()
                if turn % 2:
                    watcher.say(type="close")
                    assert watcher.closed()[0] == 1000
                else:
                    watcher.socket.socket.shutdown(socket.SHUT_RDWR)  # no goodbye
            session.close()
        wait_until(lambda: not server.table.sessions and server.tasks() <= idle)
        wait_until(back)
        assert psutil.Process().memory_info().rss < memory_bytes + (8 << 20)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ServerLimits(pieces=100_000), "more than 400 messages a second"),
        (ServerLimits(pieces=200, pieces_per_s=10), "too many frames for their data"),  # before they are messages
    ],
    ids=["messages", "frames"],
)
def test_ten_thousand_control_messages_are_too_many(
    client: WorkerHandle, tmp_path: Path, limits: ServerLimits, reason: str
) -> None:
    with stream_server(client, tmp_path, router, limits) as server:
        session = server.table.open(prompt_only=False)
        text = json.dumps({"type": "control", "id": 1, "changes": {"strength": 0.5}})
        with peer(server, session) as flooder:
            flooder.text("ready")

            def flood() -> None:
                with suppress(ConnectionClosed):  # under way, as it should be
                    for _ in range(10_000):
                        flooder.socket.send(text)

            sender = threading.Thread(target=flood)
            sender.start()
            assert flooder.closed() == (4429, reason)
            sender.join()
        assert not session.over
