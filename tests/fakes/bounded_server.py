"""A bounded server for tests, below requests and messages: a small application, and clients that write bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from app.server.front_server import FrontServer
from app.server.limits import ServerLimits

LIMITS = ServerLimits(request_s=0.5, unread_s=0.5, connections=24, per_address=1.0)
WAIT_S = 10.0
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MUCH = 24 << 20  # more than the system keeps


class Reader:
    """Reads bodies; greets WebSockets with a megabyte if the path is /much, then tells each message's length."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            with contextlib.suppress(OSError, RuntimeError):
                await self._talk(scope["path"], receive, send)
            return
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            size += len(message["body"])
            more = message["more_body"]
        body = bytes(MUCH) if scope["path"] == "/much" else str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _talk(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/much":
            await send({"type": "websocket.send", "bytes": bytes(MUCH)})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": str(_size(message))})


def _size(message: Message) -> int:
    return len(message.get("bytes") or message.get("text") or "")


class Served:
    """port: of the server. front: it."""

    def __init__(self, front: FrontServer, port: int) -> None:
        self.front = front
        self.port = port

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        line = socket.socket()
        line.bind((source, 0))
        line.settimeout(WAIT_S)
        line.connect(("127.0.0.1", self.port))
        return line

    def websocket(self, path: str = "/") -> socket.socket:
        line = self.connect()
        line.sendall(HANDSHAKE.replace(b"GET /", b"GET " + path.encode()))
        told = b""
        while b"\r\n\r\n" not in told:
            told += line.recv(1)
        assert told.startswith(b"HTTP/1.1 101"), told
        return line

    def answers(self, source: str = "127.0.0.1") -> bool:
        with self.connect(source) as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return line.recv(12) == b"HTTP/1.1 200"

    @property
    def connections(self) -> int:
        return len(self.front.arrivals.places)


@contextmanager
def served(limits: ServerLimits = LIMITS, **settings: Any) -> Iterator[Served]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    front = FrontServer(
        Reader(),
        listening,
        limits=limits,
        lifespan="off",
        log_level="warning",
        timeout_graceful_shutdown=1,
        **settings,
    )
    thread = threading.Thread(target=lambda: asyncio.run(front.serve()))
    thread.start()
    try:
        until(lambda: front.server.started)
        yield Served(front, port)
    finally:
        front.server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


def until(happened: Any, timeout_s: float = WAIT_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.01)


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFF]) + struct.pack(">Q", len(data))
    return bytes([(0x80 if fin else 0) | opcode]) + size + bytes(4) + data  # masked with zeros


def close_code(line: socket.socket) -> int | None:
    """The code of the close frame that ends what the server sends; None: there is none."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(65536):
            data += piece
    at = data.rfind(b"\x88")
    return struct.unpack(">H", data[at + 2 : at + 4])[0] if at >= 0 else None


def ended(line: socket.socket) -> bool:
    """Whether the server ends the connection."""
    with contextlib.suppress(ConnectionError):
        while line.recv(65536):
            pass
    return True
