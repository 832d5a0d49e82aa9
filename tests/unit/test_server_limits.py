"""The server below requests and messages: what a client may make it read, keep and answer before it has shown anything.

A real server with small limits, and clients that write bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
import ssl
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.http11 import Request

from app.server.http_protocol import FrontHttp
from app.server.limits import Pieces, ServerLimits
from app.server.listener import Arrivals, FrontListener
from app.server.socket_protocol import BoundedFrames, FrontSocket
from app.server.tls import self_signed
from tests.fakes.bounded_server import HANDSHAKE, LIMITS, MUCH, WAIT_S, Served, close_code, ended, frame, served, until


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as server:
        yield server


# ---- time ----


def test_who_sends_no_whole_request_in_time_is_let_go(server: Served) -> None:
    half = b"GET / HTTP/1.1\r\nHost: x\r\n"
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(server.connect()) for _ in range(4)]
        for line, sent in zip(lines, (b"", b"GET / HT", half, half + b"Content-Length: 0\r\n\r\nGET /"), strict=True):
            line.sendall(sent)
        began_s = time.monotonic()
        assert all(ended(line) for line in lines)
        assert 0.3 < time.monotonic() - began_s < 5
    until(lambda: server.connections == 0)


def test_a_header_that_drips_has_no_more_time(server: Served) -> None:
    with server.connect() as line, contextlib.suppress(ConnectionError):
        line.sendall(b"GET / HTTP/1.1\r\n")
        began_s = time.monotonic()
        while time.monotonic() - began_s < 5:
            line.sendall(b"x: y\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began_s < 3
    assert server.answers()


def test_a_tls_handshake_has_no_more_time(tmp_path: Path) -> None:
    files = self_signed(tmp_path, "127.0.0.1")
    with served(cert=files.cert, key=files.key) as server:
        for sent in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
            with server.connect() as line:
                line.sendall(sent)
                assert ended(line)
        context = ssl.create_default_context(cafile=str(files.cert))
        context.check_hostname = False
        assert httpx.get(f"https://127.0.0.1:{server.port}/", verify=context).text == "0"
        until(lambda: server.connections == 0)


def test_a_slow_answer_and_a_body_under_way_have_their_time(server: Served) -> None:
    """The limit is on who has shown nothing: whose body takes longer is not cut off here."""
    with server.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            time.sleep(0.1)
            line.sendall(b"x")
        assert line.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_who_does_not_read_is_cut_off(server: Served, kind: str) -> None:
    if kind == "http":
        line = server.connect()
        line.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
    else:
        line = server.websocket("/much")
    with line:
        until(lambda: server.connections == 1)
        until(lambda: server.connections == 0, 5)


def test_the_system_takes_little_for_who_does_not_read(server: Served) -> None:
    """Else megabytes would be made for each: 2.9 instead of 0.16 over loopback."""
    with server.connect() as line:
        until(lambda: server.connections == 1)
        [arrival] = server.front.arrivals.connections
        assert arrival.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == LIMITS.unsent_bytes
        line.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        waiting = int.from_bytes(fcntl.ioctl(line, termios.FIONREAD, bytes(4)), "little")
        waiting += int.from_bytes(fcntl.ioctl(arrival, termios.TIOCOUTQ, bytes(4)), "little")
        assert 0 < waiting < 1 << 20


@pytest.mark.soak
def test_who_reads_slowly_is_not() -> None:
    with served(replace(LIMITS, unread_s=1.0, bytes_per_s=10_000)) as server, server.connect() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        line.sendall(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        size, began_s = 0, time.monotonic()
        while time.monotonic() - began_s < 1.4:
            size += len(line.recv(1 << 16))
            time.sleep(0.005)
        while size < MUCH:
            piece = line.recv(1 << 20)
            assert piece
            size += len(piece)


# ---- crowds ----


def test_a_crowd_is_taken_one_by_one(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is already there waits for one of them, not for all."""
    made_s = list[float]()
    connection_made = FrontHttp.connection_made

    def timed(protocol: FrontHttp, transport: Any) -> None:
        made_s.append(time.monotonic())
        connection_made(protocol, transport)

    monkeypatch.setattr(FrontHttp, "connection_made", timed)
    with contextlib.ExitStack() as crowd:
        for _ in range(60):
            crowd.enter_context(server.connect())
        until(lambda: len(made_s) == 60)
    assert made_s[-1] - made_s[0] > 59 * 0.0019


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo",
        b"no request\r\n\r\n",
        HANDSHAKE + frame(1, b"hello") + frame(8),
        HANDSHAKE,
        HANDSHAKE + frame(1, b"", fin=False) + frame(0, b"", fin=False) * 3000,
    ],
    ids=["request", "half", "nonsense", "messages", "silence", "flood"],
)
def test_connections_leave_nothing_for_the_garbage_collector(server: Served, sent: bytes) -> None:
    """It comes after some hundred connections only; by then they would hold megabytes."""

    kinds = (FrontHttp, FrontSocket, BoundedFrames)

    def left() -> int:
        return sum(type(thing) in kinds for thing in gc.get_objects())

    until(lambda: server.connections == 0)
    gc.collect()
    before = left()
    gc.disable()
    try:
        for _ in range(5):
            with server.connect() as line, contextlib.suppress(OSError):
                line.settimeout(0.2)
                line.sendall(sent)
                while line.recv(65536):
                    pass
        until(lambda: server.connections == 0)
        until(lambda: left() <= before)
    finally:
        gc.enable()


# ---- pieces ----


@pytest.mark.parametrize(
    "flood",
    [
        frame(9, b"x" * 125) * 3000,
        frame(10) * 3000,
        frame(1, b"", fin=False) + frame(0, b"", fin=False) * 3000,
        frame(2, b"x", fin=False) + frame(0, b"x" * 40, fin=False) * 3000,
        frame(1) * 3000,
    ],
    ids=["pings", "pongs", "empty fragments", "small fragments", "empty messages"],
)
def test_frames_without_data_are_too_many_and_the_reason_arrives(server: Served, flood: bytes) -> None:
    with server.websocket() as line:
        threading.Thread(target=_pour, args=(line, flood), daemon=True).start()
        assert close_code(line) == 4429
    until(lambda: server.connections == 0)


def _pour(line: socket.socket, flood: bytes) -> None:
    with contextlib.suppress(OSError):
        line.sendall(flood)


def test_pieces_of_a_byte_end_a_body_and_the_reason_arrives(server: Served) -> None:
    with server.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        threading.Thread(target=_pour, args=(line, b"1\r\nx\r\n" * 3000), daemon=True).start()
        told = b""
        while piece := line.recv(65536):
            told += piece
        assert told.startswith(b"HTTP/1.1 400"), told
        assert b"too many pieces" in told or b"bad_input" in told
    until(lambda: server.connections == 0)


def test_bodies_and_messages_in_larger_pieces_pass(server: Served) -> None:
    chunk = b"400\r\n" + bytes(1024) + b"\r\n"
    with server.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 3000 + b"0\r\n\r\n")
        told = line.recv(4096)
        while not told.endswith(b"3072000"):
            piece = line.recv(4096)
            assert piece, told
            told += piece
    with server.websocket() as line:
        line.sendall(frame(1, b"hello"))
        line.sendall(frame(2, bytes(1024), fin=False) + frame(0, bytes(1024), fin=False) * 2000 + frame(0))
        told = line.recv(100)
        while b"2049024" not in told:
            told += line.recv(100)


def test_pieces_are_paid_with_data_and_time() -> None:
    now = [0.0]
    limits = ServerLimits(pieces=10, pieces_per_s=2, piece_bytes=100)
    pieces = Pieces(limits, clock=lambda: now[0])
    assert [pieces.take(0) for _ in range(11)] == [True] * 10 + [False]
    now[0] += 1
    assert [pieces.take(0) for _ in range(2)] == [True, False]
    now[0] += 100  # never more than ten at once
    assert sum(pieces.take(0) for _ in range(50)) == 10
    assert all(Pieces(limits, clock=lambda: 0.0).take(100) for _ in range(1))
    paid = Pieces(limits, clock=lambda: 0.0)
    assert all(paid.take(100) for _ in range(1000))


def test_pings_get_no_pongs_while_the_peer_does_not_read() -> None:
    @dataclass
    class Unread:
        waiting: bool = False

    unread: Any = Unread()
    protocol = BoundedFrames(LIMITS, 1 << 20)
    protocol.unread = unread
    protocol.receive_data(HANDSHAKE)
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    protocol.data_to_send()

    def pongs() -> int:
        protocol.receive_data(frame(9, b"ping") * 100)
        return b"".join(protocol.data_to_send()).count(b"\x8a\x04ping")

    assert pongs() == 100
    unread.waiting = True
    assert pongs() == 0
    assert len(protocol.events_received()) == 100
    unread.waiting = False
    assert pongs() == 100


def test_the_first_message_is_small_and_later_ones_may_be_large(server: Served) -> None:
    with server.websocket() as line:
        _pour(line, frame(2, bytes(100_000)))
        assert close_code(line) == 1009
    with server.websocket() as line:
        _pour(line, frame(1, b"x" * 1000, fin=False) + frame(0, bytes(100_000), fin=False))
        assert close_code(line) == 1009
    with server.websocket() as line:
        line.sendall(frame(1, b"hello") + frame(2, bytes(1_000_000)))
        told = b""
        while b"1000000" not in told:
            told += line.recv(100)


# ---- numbers ----


def test_newcomers_take_the_places_of_those_who_have_shown_nothing() -> None:
    with served(replace(LIMITS, request_s=60)) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(60)]
        for line in idle[::2]:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert server.answers()
        assert server.connections <= 24
        assert ended(idle[0])


def test_requests_keep_their_places_and_other_addresses_theirs(caplog: pytest.LogCaptureFixture) -> None:
    with served(replace(LIMITS, per_address=0.5)) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(server.connect()) for _ in range(12)]
        for line in busy:
            line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        until(lambda: len(server.front.server.server_state.tasks) == 12)
        for _ in range(30):
            with server.connect() as line:
                assert ended(line)
        assert server.answers("127.0.0.2")
        for line in busy:
            line.sendall(b"x")
            assert line.recv(12) == b"HTTP/1.1 200"
    assert len([record for record in caplog.records if "places" in record.message]) == 1


def test_what_is_no_http_is_answered_each_time_and_logged_once(
    server: Served, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        with server.connect() as line:
            line.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            told = b""
            while piece := line.recv(4096):
                told += piece
        assert told.startswith(b"HTTP/1.1 400")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_input"
    assert len([record for record in caplog.records if "Invalid HTTP" in record.getMessage()]) <= 1


def test_out_of_descriptors_it_says_so_once_and_leaves_nobody_at_the_door(caplog: pytest.LogCaptureFixture) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with FrontListener(listening, Arrivals(LIMITS)) as listener, contextlib.ExitStack() as stack:
        listener.setblocking(False)
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S)) for _ in range(5)]
        with open_files_exhausted():
            for _ in range(3):
                with pytest.raises(BlockingIOError):
                    listener.accept()
        assert all(ended(line) for line in lines)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["No more files can be opened"]


@contextmanager
def open_files_exhausted() -> Iterator[None]:
    """The process cannot open one more file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.open(os.devnull, os.O_RDONLY)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, before[1]))
    try:
        with pytest.raises(OSError):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
