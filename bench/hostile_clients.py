"""Clients that do to a server what its limits are for, each at a fixed rate, from a process of its own.

Owns what they send. They read nothing that they are not made to; whom the server lets go comes back at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import urlsplit

_HANDSHAKE = (
    "GET /v1/sessions/abcdefabcdef/stream HTTP/1.1\r\nHost: {at}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PINGS = (b"\x89\xfd" + bytes(4) + b"x" * 125) * 500  # masked with zeros
_FRAGMENT = b"\x00\x80" + bytes(4)
_FIELD = b'--B\r\nContent-Disposition: form-data; name="%x"\r\n\r\na\r\n'
_PAUSE_S = 0.1  # before a client comes back


class Target:
    """A server, and whether to go on. url: http://HOST:PORT/."""

    def __init__(self, url: str, stop: Event) -> None:
        self.at = urlsplit(url).netloc
        self.url = url.rstrip("/")
        self.stop = stop

    def connect(self, first: str) -> socket.socket:
        """A connection on which `first` was sent."""
        host, _, port = self.at.rpartition(":")
        line = socket.create_connection((host, int(port)), timeout=10)
        line.sendall(first.format(at=self.at).encode())
        return line


def unread_pings(target: Target) -> None:
    """14 MB/s of pings on one WebSocket, whose pongs are not read."""
    _flood(target, _PINGS, 14e6)


def empty_fragments(target: Target) -> None:
    """1.5 MB/s of fragments without data on one WebSocket."""
    _flood(target, _FRAGMENT * 20_000, 1.5e6, first=b"\x01\x80" + bytes(4))


def slow_headers(target: Target) -> None:
    """130 connections with half a request header, each made again after 10 s."""
    _hold(target, 130, "GET / HTTP/1.1\r\nHost: {at}\r\n")


def silent_sockets(target: Target) -> None:
    """260 WebSockets without hello, each made again after 10 s."""
    _hold(target, 260, _HANDSHAKE)


def many_fields(target: Target) -> None:
    """A form of 20 000 fields, 1 MB, four times a second at most."""
    body = b"".join(_FIELD % number for number in range(20_000)) + b"--B--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    while not target.stop.wait(0.25):
        request = urllib.request.Request(f"{target.url}/v1/generate", body, headers)
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=60).read()


def mjpeg_stallers(target: Target) -> None:
    """15 readers of one session's Motion JPEG that read nothing, each made again after 10 s."""
    opened: dict[str, Any] | None = None
    lines: list[socket.socket] = []
    at_once = 15
    while not target.stop.wait(1.0):
        try:
            if opened is None:
                opened = _call(target, "POST", "/v1/sessions", None)
            path = _call(target, "GET", f"/v1/sessions/{opened['id']}", opened["token"])["mjpeg_url"]
            lines = [line for line in lines if _stands(line)]
            for _ in range(min(at_once, 15 - len(lines))):
                lines.append(target.connect(f"GET {path} HTTP/1.1\r\nHost: {{at}}\r\n\r\n"))
            at_once = 2
        except urllib.error.HTTPError:
            opened = None  # it has ended
        except OSError:
            continue
    for line in lines:
        line.close()


CLIENTS: Sequence[Callable[[Target], None]] = (
    *(unread_pings, unread_pings),
    *(slow_headers, slow_headers),
    *(empty_fragments, empty_fragments),
    many_fields,
    silent_sockets,
    *(mjpeg_stallers, mjpeg_stallers),
)
"""Ten clients."""


def start(url: str, clients: Sequence[Callable[[Target], None]] = CLIENTS) -> tuple[SpawnProcess, Event]:
    """A process with all of them, and the event that ends it. They stand for other machines: it has the lowest
    priority."""
    context = get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_run, args=(url, stop, clients))
    process.start()
    return process, stop


def _run(url: str, stop: Event, clients: Sequence[Callable[[Target], None]]) -> None:
    os.nice(19)
    target = Target(url, stop)
    threads = [threading.Thread(target=client, args=(target,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _flood(target: Target, chunk: bytes, bytes_per_s: float, first: bytes = b"") -> None:
    """One WebSocket after another, never read."""
    while not target.stop.wait(_PAUSE_S):
        with contextlib.suppress(OSError), target.connect(_HANDSHAKE) as line:
            line.sendall(first)
            while not target.stop.wait(len(chunk) / bytes_per_s):
                line.sendall(chunk)


def _hold(target: Target, count: int, first: str) -> None:
    """So many connections, all at once; of those that were closed a tenth of all is made again every second."""
    lines: list[socket.socket] = []
    at_once = count
    while not target.stop.wait(1.0):
        lines = [line for line in lines if _stands(line)]
        for _ in range(min(at_once, count - len(lines))):
            with contextlib.suppress(OSError):
                lines.append(target.connect(first))
        at_once = count // 10
    for line in lines:
        line.close()


def _stands(line: socket.socket) -> bool:
    """Whether the server keeps it; what it has sent stays unread. A WebSocket with a close frame is closed."""
    try:
        line.setblocking(False)
        told = line.recv(4096, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        line.close()
        return False
    if told and not (told.startswith(b"HTTP/1.1 101") and b"\r\n\r\n\x88" in told) and _open(line):
        return True
    line.close()
    return False


def _open(line: socket.socket) -> bool:
    """Whether the other side of a connection has not closed it, without reading."""
    state: int = struct.unpack("B", line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    return state == 1  # TCP_ESTABLISHED


def _call(target: Target, method: str, path: str, token: str | None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(target.url + path, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
