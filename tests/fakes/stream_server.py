"""A real server for tests: uvicorn in a thread over a real worker with the identity engine, and a small client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from app.api.context import ApiContext
from app.api.stream.wire import HEADER_BYTES, Header, PictureFormat, pack_header, parse_header
from app.server.front_server import FrontServer
from app.server.limits import ServerLimits
from app.session.session import Session
from app.session.table import SessionLimits, SessionTable
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from pipelines.core.types import Picture
from pipelines.files.loader_options import LoaderOptions

WAIT_S = 20.0
WIDTH_PX, HEIGHT_PX = 32, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamServer:
    """A running server. loop: its event loop, in another thread. stop: stops it as Ctrl-C does; may be called twice."""

    port: int
    context: ApiContext
    loop: asyncio.AbstractEventLoop
    stop: Callable[[], None]

    @property
    def table(self) -> SessionTable:
        return self.context.table

    def url(self, session_id: str) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/sessions/{session_id}/stream"

    def tasks(self) -> int:
        """Return the number of tasks of the server's event loop."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(WAIT_S)


@contextmanager
def worker_client(max_sessions: int = 4) -> Iterator[WorkerHandle]:
    """Start a real worker with the identity engine and wait until it is ready."""
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=WIDTH_PX, height=HEIGHT_PX))
    with WorkerHandle(options, max_sessions=max_sessions) as client:
        client.wait_ready(60)
        yield client


@contextmanager
def stream_server(
    client: WorkerHandle,
    data: Path,
    routes: Callable[[ApiContext], fastapi.APIRouter],
    limits: ServerLimits | None = None,
) -> Iterator[StreamServer]:
    """Serve `routes` of one session table over `client`."""
    table = SessionTable(client, SessionLimits(per_minute=1000))
    codecs = ThreadPoolExecutor(2, thread_name_prefix="codec")
    context = ApiContext(table=table, codecs=codecs, data=data, model="identity")
    app = fastapi.FastAPI()
    app.include_router(routes(context))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    front = FrontServer(app, listener, limits=limits, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    server = front.server
    loop = asyncio.new_event_loop()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(front.serve())
        loop.close()

    thread = threading.Thread(target=serve, name="uvicorn")
    thread.start()
    wait_until(lambda: server.started)

    def stop() -> None:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive(), "the server hangs"

    try:
        yield StreamServer(port=port, context=context, loop=loop, stop=stop)
    finally:
        stop()
        table.stop()
        codecs.shutdown()


class Peer:
    """A client's connection: messages are read in order, one type at a time."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []  # text messages received so far, including skipped ones

    def say(self, **message: object) -> None:
        self.socket.send(json.dumps(message))

    def picture(self, image: Picture, seq: int, captured_ms: float = 0.0) -> None:
        """Send a picture as raw RGB."""
        height, width = image.shape[:2]
        header = Header(format=PictureFormat.RGB, seq=seq, captured_ms=captured_ms, width=width, height=height)
        self.socket.send(pack_header(header) + image.tobytes())

    def text(self, kind: str) -> dict[str, Any]:
        """Return the next text message of that type; frames before it are acknowledged."""
        while True:
            message = self.socket.recv(WAIT_S)
            if isinstance(message, bytes):
                self.say(type="ack", seq=parse_header(message).seq)
                continue
            found: dict[str, Any] = json.loads(message)
            self.seen.append(found)
            if found["type"] == kind:
                return found

    def frame(self, timeout_s: float = WAIT_S, *, ack: bool = True) -> tuple[Header, bytes]:
        """Return the next frame. Raises TimeoutError after `timeout_s` without any message."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            message = self.socket.recv(max(0.0, deadline_s - time.monotonic()))
            if isinstance(message, bytes):
                header = parse_header(message)
                if ack:
                    self.say(type="ack", seq=header.seq)
                return header, message[HEADER_BYTES:]
            self.seen.append(json.loads(message))

    def closed(self) -> tuple[int, str]:
        """Wait for the server to close the connection. Returns the code and reason."""
        deadline_s = time.monotonic() + WAIT_S
        while self.socket.close_code is None:
            assert time.monotonic() < deadline_s
            try:
                message = self.socket.recv(WAIT_S)
            except ConnectionClosed:
                break
            if isinstance(message, str):
                self.seen.append(json.loads(message))
        assert self.socket.close_code is not None
        return self.socket.close_code, self.socket.close_reason or ""


@contextmanager
def peer(server: StreamServer, session: Session, **hello: object) -> Iterator[Peer]:
    """Connect and send hello; nothing is read yet."""
    with connect(server.url(session.id), compression=None, max_size=None, close_timeout=2) as socket:
        found = Peer(socket)
        found.say(**{"type": "hello", "version": 1, "token": session.token, "format": "rgb", **hello})
        yield found


def noise(seed: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for a condition; fail after a while."""
    deadline_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)
