"""The guard around bodies, options and logs; WebSockets, logs and bodies through a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Message
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.cli.guard_options import guard_options, links
from app.guard.body import BodyGate
from app.guard.middleware import Guard
from app.guard.rules import GuardOptions
from app.server.log_secrets import HideTokens, hidden_tokens
from pipelines.core.errors import InputError
from tests.fakes.guarded import LOCAL, SESSION, TOKEN, Echo, Site, bearer, parsed


async def pieces(count: int, size: int = 1000) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


@pytest.mark.parametrize("streamed", [False, True])
def test_bodies_are_capped_by_route(streamed: bool) -> None:
    site = Site(dataclasses.replace(LOCAL, body_bytes=5000, upload_bytes=20_000))
    for path, count, status in (("/v1/generate", 5, 200), ("/v1/generate", 6, 413), ("/v1/jobs", 20, 200)):
        answer = site("POST", path, content=pieces(count) if streamed else bytes(count * 1000))
        assert answer.status_code == status, path
    answer = site("POST", "/v1/jobs", content=pieces(200) if streamed else bytes(200_000))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"
    assert site.echo.body_bytes <= 5000 + 5000 + 20_000 + 20_000  # nothing beyond a cap reached the application


def test_a_body_that_drips_is_refused_although_each_piece_is_in_time() -> None:
    sent: list[Message] = []

    async def drip() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    async def check() -> int:
        gate = BodyGate(drip, send, cap_bytes=1000, patience_s=0.4, bytes_per_s=1e6)
        count = 0
        while (await gate.receive())["type"] == "http.request":
            count += 1
        assert gate.refused
        assert (await gate.receive())["type"] == "http.disconnect"
        await gate.send({"type": "http.response.start", "status": 200, "headers": []})
        return count

    assert 1 <= asyncio.run(check()) <= 8
    assert [message.get("status") for message in sent] == [408, None]  # the application's own answer is dropped


def test_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("ZOETROPE_TOKEN", raising=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert guard_options(parsed(), host, 7860).token is None
    made = guard_options(parsed(), "192.0.2.1", 7860)
    assert made.token is not None
    assert made.token_is_new
    assert made.token != guard_options(parsed(), "192.0.2.1", 7860).token
    assert links(made, "192.0.2.1", tls=True) == [f"https://192.0.2.1:7860/?token={made.token}"]
    assert guard_options(parsed("--token", TOKEN), "127.0.0.1", 7860).token == TOKEN
    monkeypatch.setenv("ZOETROPE_TOKEN", TOKEN)
    assert guard_options(parsed(), "::", 7860).token == TOKEN
    with pytest.raises(SystemExit):
        parsed("--allow-remote")
    assert "now requires a token from every client" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token", "short"), "--token has 5 characters"),
        (("--token", "schlüssel-mit-umlaut"), "non-ASCII"),
        (("--allow-host", "http://a.example"), "--allow-host 'http://a.example' is not a name"),
        (("--allow-origin", "a.example"), "--allow-origin 'a.example' is not an origin"),
        (("--allow-origin", "https://a.example/path"), "is not an origin"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        guard_options(parsed(*arguments), "127.0.0.1", 7860)


def test_logs_show_no_token(caplog: pytest.LogCaptureFixture) -> None:
    secrets = ("1790.signed", "sessiontoken", "very-secret", "tok9", TOKEN)
    with hidden_tokens(TOKEN):
        log = logging.getLogger("app.test_guard")
        log.warning("%s %s", "GET", "/v1/sessions/x/mjpeg?token=1790.signed&a=b")
        log.warning('{"type": "hello", "token": "sessiontoken"}')
        log.warning("headers %(all)s", {"all": {"authorization": "Bearer sessiontoken"}})
        log.warning("in the middle: %s", [f"x{TOKEN}y"])
        try:
            raise ValueError(TOKEN)
        except ValueError:
            log.exception("failed with status %d", 5)
        log.warning(
            "pushing to rtmp://live.example/app/very-secret?x=1 and srt://h:9?passphrase=very-secret&streamid=p"
        )
        log.warning(
            "%s", {"address": "rtmps://live.example:443/a/b/very-secret", "headers": [("zoetrope-token", "tok9")]}
        )
        log.warning("Zoetrope-Token: tok9; http://user:very-secret@live.example/whip")
    assert "a=b" in caplog.text
    assert "rtmp://live.example/app/***" in caplog.text
    assert "failed with status 5" in caplog.text
    assert [secret for secret in secrets if secret in caplog.text] == []
    for url in (
        "rtmp://live.example/very-secret",
        "rtmps://live.example:443/very-secret?x=1",
        "rtmp://h/app/very-secret",
    ):
        assert "secret" not in HideTokens().clean(f"pushing to {url}, again")
    assert HideTokens().clean("a token of 5 bytes") == "a token of 5 bytes"


# ---- through a real server ----


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found


@asynccontextmanager
async def served(echo: Echo, **changes: Any) -> AsyncIterator[str]:
    """Serve a guarded echo by uvicorn. Yields its "host:port"."""
    with listener() as found:
        port = found.getsockname()[1]
        options = GuardOptions(port=port, hosts=frozenset({f"127.0.0.1:{port}"}), token=TOKEN)
        guard = Guard(echo, dataclasses.replace(options, **changes))
        server = uvicorn.Server(uvicorn.Config(guard, ws="websockets-sansio", lifespan="off", log_level="info"))
        task = asyncio.create_task(server.serve(sockets=[found]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.should_exit = True
            await task


async def socket_status(address: str, headers: dict[str, str] | None = None) -> int:
    """Return 101, or the status with which the handshake was refused."""
    try:
        async with connect(f"ws://{address}", additional_headers=headers, proxy=None) as connection:
            assert await connection.recv() == "hello"
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_websockets() -> None:
    async def check() -> None:
        echo = Echo()
        async with served(echo) as at:
            assert await socket_status(f"{at}{SESSION}/stream") == 101  # hello carries the session's token
            assert await socket_status(f"{at}{SESSION}/stream", {"origin": f"http://{at}"}) == 101
            assert await socket_status(f"{at}{SESSION}/stream", {"origin": "http://evil.example"}) == 403
            assert await socket_status(f"{at}{SESSION}/stream", {"origin": "null"}) == 403
            assert await socket_status(f"{at}/other") == 401
            assert await socket_status(f"{at}/other", bearer("x" * 20)) == 401
            assert await socket_status(f"{at}/other", bearer()) == 101
            async with httpx.AsyncClient() as http:
                answer = await http.get(f"http://{at}/?token={TOKEN}")
            cookie = answer.headers["set-cookie"].partition(";")[0]
            assert await socket_status(f"{at}/other", {"cookie": cookie}) == 101
            port = int(at.partition(":")[2])
            assert await socket_status(f"localhost:{port}{SESSION}/stream") == 403  # not a name of this guard

    asyncio.run(check())


def test_the_access_log_shows_no_token(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def check() -> None:
        async with served(Echo()) as at, httpx.AsyncClient() as http:
            await http.get(f"http://{at}/?token={TOKEN}")
            await http.get(f"http://{at}{SESSION}/mjpeg?token=1790.signed")
            await http.get(f"http://{at}/?token=wrong-secret")

    with hidden_tokens(TOKEN):
        asyncio.run(check())
    written = "".join(capsys.readouterr())
    assert "token=***" in written
    assert [text for text in (TOKEN, "1790.signed", "wrong-secret") if text in written] == []


async def exchange(at: str, head: str, *parts: bytes) -> tuple[int, dict[str, object], bool]:
    """Send raw bytes. Returns the status, the JSON and whether the server closed the connection."""
    host, _, port = at.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        lines = f"{head} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(lines.encode())
        for part in parts:
            writer.write(part)
        answer = await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)["error"], b"connection: close" in top.lower()


def test_too_large_and_too_slow_are_answered_before_the_body_ends() -> None:
    async def check() -> None:
        echo = Echo()
        async with served(echo, body_bytes=5000, body_s=0.3, body_bytes_per_s=1e6) as at:
            status, error, hung_up = await exchange(at, "POST /x", b"Content-Length: 100000000\r\n\r\n")
            assert (status, error["code"], hung_up) == (413, "too_large", True)
            assert echo.calls == []  # not a byte was read
            chunk = b"800\r\n" + bytes(2048) + b"\r\n"
            status, _, hung_up = await exchange(at, "POST /x", b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 3)
            assert (status, hung_up) == (413, True)
            assert echo.body_bytes <= 5000
            status, _, hung_up = await exchange(at, "POST /x", b"Content-Length: 10\r\n\r\n", b"half")
            assert (status, hung_up) == (408, True)
            async with httpx.AsyncClient() as http:
                assert (await http.post(f"http://{at}/x", headers=bearer(), content=b"fine")).status_code == 200

    asyncio.run(check())
