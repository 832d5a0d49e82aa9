"""Faulty and hostile HTTP clients of the whole API behind its guard: the responses, and that nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from app.guard.rules import GuardOptions
from app.worker.handle import WorkerHandle
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import wait_until, worker_client

GUARD = GuardOptions(port=1, hosts=frozenset(), sessions_per_minute=100_000, body_s=2.0, body_bytes_per_s=1e6)
FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    with worker_client() as made:
        yield made


@pytest.fixture
def server(worker: WorkerHandle, tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(worker, tmp_path / "data", guard=GUARD) as made:
        yield made


def connect(server: ApiServer) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def head(server: ApiServer, method: str, path: str, *lines: bytes) -> bytes:
    host = urlsplit(server.url).netloc
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n".encode() + b"".join(lines) + b"\r\n"


def answer_of(line: socket.socket) -> tuple[int, str]:
    """Return the status and error code of the response before the server closes the connection."""
    told = b""
    with suppress(ConnectionResetError):  # who goes on sending is reset after the answer
        while piece := line.recv(65536):
            told += piece
    top, _, body = told.partition(b"\r\n\r\n")
    assert b"connection: close" in top.lower()
    return int(top.split()[1]), json.loads(body)["error"]["code"]


def files(server: ApiServer) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(server.context.data) for name in names]  # some vanish


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/generate", "/v1/whip"])
def test_a_body_of_100_mb_is_refused_unread(server: ApiServer, path: str) -> None:
    before = resident()
    with connect(server) as line:
        line.sendall(head(server, "POST", path, b"Content-Length: 100000000\r\n"))
        assert answer_of(line) == (413, "too_large")
    with connect(server) as line:  # without a length
        line.sendall(head(server, "POST", path, FORM, b"Transfer-Encoding: chunked\r\n"))
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        with suppress(ConnectionError):  # the server has closed while we were still sending
            for _ in range(1600):
                line.sendall(chunk)
        told = b""
        with suppress(ConnectionError):
            told = line.recv(65536)
        assert told == b"" or told.split()[1] in (b"413", b"415", b"400", b"422")
    assert resident() - before < 32 * MEBIBYTE
    assert server.http.get("/healthz").status_code == 200
    assert server.table.sessions == ()


def test_a_body_that_drips_is_ended_and_others_are_served_meanwhile(server: ApiServer) -> None:
    with connect(server) as line:
        line.sendall(head(server, "POST", "/v1/jobs", FORM, b"Content-Length: 1000000\r\n") + PART)
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                while not stop.wait(0.1):
                    line.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        began_s = time.monotonic()
        try:
            with ThreadPoolExecutor(1) as reader:  # at once: a drop after the server has hung up takes the answer away
                answer = reader.submit(answer_of, line)
                for _ in range(10):
                    assert server.http.get("/healthz").status_code == 200
                assert answer.result() == (408, "bad_input")
        finally:
            stop.set()
            dripping.join()
        assert 1 < time.monotonic() - began_s < 15
    wait_until(lambda: files(server) == [])


def test_headers_that_drip_hold_nothing_up(server: ApiServer) -> None:
    lines = [connect(server) for _ in range(50)]
    try:
        for line in lines:
            line.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: ")
        began_s = time.monotonic()
        assert server.http.get("/healthz").status_code == 200
        assert server.http.post("/v1/sessions").status_code == 201
        assert time.monotonic() - began_s < 5
    finally:
        for line in lines:
            line.close()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/generate"])
def test_who_vanishes_in_the_middle_of_an_upload_leaves_no_file_and_no_place_taken(
    server: ApiServer, path: str
) -> None:
    part = PART if path == "/v1/jobs" else PART.replace(b"video", b"picture")
    for _ in range(6):  # more than there are places
        with connect(server) as line:
            line.sendall(head(server, "POST", path, FORM, b"Content-Length: 1000000\r\n") + part + bytes(300_000))
            if path == "/v1/jobs":
                wait_until(lambda: files(server) != [])
        wait_until(lambda: files(server) == [])
    assert server.table.sessions == ()
    options = {"options": (None, json.dumps({"seconds": 0.1, "fps": 10}))}
    assert server.http.post("/v1/jobs", files=options).status_code == 202


def test_many_changes_over_http_are_all_or_nothing_and_leave_nothing(server: ApiServer) -> None:
    made = server.http.post("/v1/sessions", json={"controls": {"prompt": "a cat"}}).json()
    path, token = f"/v1/sessions/{made['id']}", {"Authorization": f"Bearer {made['token']}"}
    for i in range(30):  # what grows once grows here
        server.http.patch(path, headers=token, json={"controls": {"seed": i}})
    before, threads = resident(), threading.active_count()
    for i in range(60):
        answer = server.http.patch(path, headers=token, json={"controls": {"seed": i, "strength": 0.5}})
        assert answer.status_code == 200, answer.text
    assert server.http.get(path, headers=token).json()["controls"]["seed"] == 59
    for count, refusal in ((10_000, (422, "bad_control")), (20_000, (413, "too_large"))):
        everything = {"controls": {f"unknown{i}": i for i in range(count)}}
        answer = server.http.patch(path, headers=token, json=everything)
        assert (answer.status_code, answer.json()["error"]["code"]) == refusal
        assert len(answer.content) < 1000
    assert server.http.get(path, headers=token).json()["controls"]["seed"] == 59
    assert resident() - before < 32 * MEBIBYTE
    assert threading.active_count() <= threads + 2
    assert server.http.delete(path, headers=token).status_code == 204


@pytest.mark.soak
def test_10000_changes_of_four_clients_at_once(server: ApiServer) -> None:
    made = [server.http.post("/v1/sessions").json() for _ in range(4)]
    before = resident()
    failed: list[str] = []

    def change(session: dict[str, str]) -> None:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {session['token']}"}) as http:
            for i in range(2500):
                answer = http.patch(f"/v1/sessions/{session['id']}", json={"controls": {"seed": i}})
                if answer.status_code != 200:
                    failed.append(answer.text)

    clients = [threading.Thread(target=change, args=(session,)) for session in made]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert failed == []
    for session in made:
        found = server.http.get(
            f"/v1/sessions/{session['id']}", headers={"Authorization": f"Bearer {session['token']}"}
        )
        assert found.json()["controls"]["seed"] == 2499
    assert resident() - before < 48 * MEBIBYTE


def png_bomb(side: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = (head, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def small(kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(target, kind, **options)
    return target.getvalue()


def jpeg_bomb(side: int) -> bytes:
    data = bytearray(small("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def webp_bombs(side: int) -> Iterator[bytes]:
    """Of the three kinds; the plain and the lossless one can claim at most 16383 px per side."""
    lossy = bytearray(small("WEBP"))
    lossy[26:30] = struct.pack("<HH", min(side, 0x3FFF), min(side, 0x3FFF))
    yield bytes(lossy)
    lossless = bytearray(small("WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 0x3FFE | 0x3FFE << 14)
    yield bytes(lossless)
    canvas = b"\0\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    chunks = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + bytes(lossy[12:])
    yield b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def test_bombs_are_refused_before_anything_is_allocated(server: ApiServer) -> None:
    bombs = (png_bomb(60_000), jpeg_bomb(60_000), *webp_bombs(60_000))
    fine = {"picture": small("PNG"), "options": (None, "{}")}
    assert server.http.post("/v1/generate", files=fine).status_code == 200  # what is allocated once is
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    for bomb in bombs:
        began_s = time.monotonic()
        answer = server.http.post("/v1/generate", files={"picture": bomb})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_input"), bomb[:16]
        assert "too large" in answer.json()["error"]["message"]
        assert time.monotonic() - began_s < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 32 << 10
    assert server.table.sessions == ()


def test_openings_beyond_the_rate_say_when_to_come_back(worker: WorkerHandle, tmp_path: Path) -> None:
    with api_server(worker, tmp_path, guard=replace(GUARD, sessions_per_minute=2)) as server:
        answers = [server.http.post("/v1/sessions") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert answers[-1].json()["error"]["code"] == "busy"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
