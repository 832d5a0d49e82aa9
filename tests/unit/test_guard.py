"""The guard: names, origins, tokens, rates and bodies; in front of an application that tells what reached it."""

from __future__ import annotations

import argparse
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
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app.guard import Guard
from app.guard_body import BodyGate
from app.guard_options import add_guard_options, guard_options, links
from app.guard_rules import Buckets, GuardOptions, client_key
from app.log_secrets import HideTokens, hidden_tokens
from pipelines.errors import InputError

TOKEN = "correct-horse-battery"  # of tests
LOCAL = GuardOptions(port=7860, hosts=frozenset({"localhost:7860", "127.0.0.1:7860", "[::1]:7860"}))
REMOTE = dataclasses.replace(LOCAL, token=TOKEN, hosts=LOCAL.hosts | {"studio.example:7860"})
BASE = "http://localhost:7860"
PAGE = {"accept": "text/html,*/*;q=0.8"}
SESSION = "/v1/sessions/abc_DEF-1"


class Echo:
    """Reads the whole body and counts it; accepts every WebSocket."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.body_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        self.calls.append(scope["path"])
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "hello"})
            await receive()
            return
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("the client has gone")
            self.body_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(self.body_bytes).encode()})


class Site:
    """Asks a guarded echo; each call is one request. now_s: the guard's clock."""

    def __init__(self, options: GuardOptions) -> None:
        self.echo = Echo()
        self.now_s = 1_790_000_000.0
        self.guard = Guard(self.echo, options, clock=lambda: self.now_s)

    def __call__(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        base: str = BASE,
        client: str = "192.0.2.7",
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.guard, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url=base) as http:
                return await http.request(method, path, headers=headers, content=content)

        return asyncio.run(ask())


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", ["/", "/v1/models", "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_every_route_asks_for_the_token(method: str, path: str) -> None:
    site = Site(REMOTE)
    assert site(method, path).status_code == 401
    assert site(method, path, bearer(TOKEN[:-1])).status_code == 401
    assert site(method, path, bearer(TOKEN + "x")).status_code == 401
    assert site.echo.calls == []
    if (method, path) != ("POST", "/"):  # that one is the form
        assert site(method, path, bearer()).status_code == 200


def test_on_this_machine_nobody_is_asked() -> None:
    site = Site(LOCAL)
    assert site("GET", "/").status_code == 200
    assert site("POST", "/v1/sessions").status_code == 200
    assert site("GET", "/", base="http://[::1]:7860").status_code == 200


def test_json_for_programs_and_a_page_for_browsers() -> None:
    site = Site(REMOTE)
    answer = site("GET", "/v1/models")
    assert answer.json()["error"]["code"] == "unauthorised"
    assert answer.headers["www-authenticate"] == "Bearer"
    page = site("GET", "/", PAGE)
    assert page.status_code == 401
    assert "asks for its token" in page.text
    assert 'type="password"' in page.text
    assert "Wrong token." in site("GET", "/?token=wrong", PAGE).text


@pytest.mark.parametrize("form", [False, True])
def test_a_visit_with_the_token_becomes_a_cookie_and_a_clean_address(form: bool) -> None:
    site = Site(REMOTE)
    if form:  # our policy no-referrer makes browsers send Origin: null
        answer = site("POST", "/", {**PAGE, "origin": "null"}, f"token={TOKEN}".encode())
        assert answer.headers["location"] == "/"
    else:
        answer = site("GET", f"/?view=side&token={TOKEN}", PAGE)
        assert answer.headers["location"] == "/?view=side"
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie
    pair = cookie.partition(";")[0]
    for method, path in (("GET", "/"), ("POST", "/gradio_api/upload"), ("POST", "/v1/sessions")):
        assert site(method, path, {"cookie": f"a=b; {pair}"}).status_code == 200
    assert site("GET", "/", {"cookie": pair[:-1] + ("A" if pair[-1] != "A" else "B")}).status_code == 401
    site.now_s += 31 * 24 * 3600
    assert site("GET", "/", {"cookie": pair}).status_code == 401


def test_the_cookie_is_secure_below_tls_and_ends_with_the_token() -> None:
    site = Site(REMOTE)
    answer = site("GET", f"/?token={TOKEN}", base="https://localhost:7860")
    assert "; Secure" in answer.headers["set-cookie"]
    other = Site(dataclasses.replace(REMOTE, token="another-token-altogether"))
    assert other("GET", "/", {"cookie": answer.headers["set-cookie"].partition(";")[0]}).status_code == 401


def test_a_link_on_another_site_works_although_the_cookie_is_strict() -> None:
    site = Site(REMOTE)
    visit = {**PAGE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    answer = site("GET", f"/?token={TOKEN}", visit)
    assert answer.status_code == 200
    assert 'content="0;url=/"' in answer.text
    assert "set-cookie" in answer.headers
    hop = site("GET", "/", visit)
    assert 'content="0;url=/"' in hop.text
    assert "set-cookie" not in hop.headers
    assert site.echo.calls == []


@pytest.mark.parametrize(
    ("method", "path", "headers", "passes"),
    [
        ("GET", SESSION, bearer("session"), True),
        ("DELETE", SESSION, bearer("session"), True),
        ("POST", f"{SESSION}/whip", bearer("session"), True),
        ("PATCH", f"{SESSION}/whep/peer-1", bearer("session"), True),
        ("OPTIONS", f"{SESSION}/whip", {}, True),
        ("GET", f"{SESSION}/mjpeg?token=1.x", {}, True),
        ("GET", f"{SESSION}?token=1.x", {}, False),
        ("POST", f"{SESSION}/mjpeg?token=1.x", {}, False),
        ("GET", SESSION, {}, False),
        ("POST", f"{SESSION}/whip", {}, False),
        ("POST", "/v1/sessions", bearer("session"), False),
        ("GET", "/v1/sessions/../../gradio_api/x", bearer("session"), False),
        ("GET", "/v1/sessions/a/..%2f..%2fgradio_api%2fx", bearer("session"), False),
        ("GET", f"//v1/sessions/{'a' * 65}", bearer("session"), False),
    ],
)
def test_a_sessions_own_routes_check_its_token_themselves(
    method: str, path: str, headers: dict[str, str], passes: bool
) -> None:
    site = Site(REMOTE)
    assert site(method, BASE + path, headers).status_code == (200 if passes else 401)
    assert bool(site.echo.calls) is passes


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("localhost:7860", True),
        ("LOCALHOST:7860", True),
        ("studio.example:7860", True),
        ("studio.example.:7860", True),
        ("localhost", False),
        ("localhost:7861", False),
        ("evil.example:7860", False),
        ("localhost:7860.evil.example", False),
        ("evil.example#localhost:7860", False),
        ("user@localhost:7860", False),
        ("192.168.1.5:7860", False),
        ("", False),
    ],
)
def test_dns_rebinding_needs_a_foreign_name(host: str, fine: bool) -> None:
    site = Site(REMOTE)
    answer = site("GET", "/v1/models", {**bearer(), "host": host})
    assert answer.status_code == (200 if fine else 403)
    if not fine:
        assert "--allow-host" in answer.json()["error"]["remedy"]


def test_a_server_on_all_addresses_goes_by_addresses_and_allowed_names() -> None:
    options = guard_options(parsed("--allow-host", "a.example", "--allow-host", "b.example:80"), "0.0.0.0", 7860)
    site = Site(dataclasses.replace(options, token=TOKEN))
    fine = ["10.1.2.3:7860", "[2001:db8::1]:7860", "a.example", "a.example:99", "b.example", "localhost:7860"]
    for host in fine:
        assert site("GET", "/x", {**bearer(), "host": host}).status_code == 200, host
    for host in ("10.1.2.3:7861", "b.example:81", "c.example:7860"):
        assert site("GET", "/x", {**bearer(), "host": host}).status_code == 403, host


@pytest.mark.parametrize(
    ("origin", "fine"),
    [
        ("http://localhost:7860", True),
        ("https://localhost:7860", True),  # a proxy adds TLS
        ("http://localhost", False),
        ("http://localhost:7861", False),
        ("http://127.0.0.1:7860", False),
        ("http://evil.example", False),
        ("http://localhost:7860.evil.example", False),
        ("null", False),
        ("", False),
        ("file://localhost:7860", False),
        ("https://friend.example", True),
    ],
)
@pytest.mark.parametrize("path", ["/v1/sessions", "/gradio_api/upload", f"{SESSION}/whip", "/v1/whip"])
def test_pages_of_other_sites_are_kept_out(origin: str, fine: bool, path: str) -> None:
    site = Site(dataclasses.replace(LOCAL, origins=frozenset({"https://friend.example"})))
    answer = site("POST", path, {"origin": origin})
    assert answer.status_code == (200 if fine else 403)
    assert bool(site.echo.calls) is fine


def test_without_origin_sec_fetch_site_tells() -> None:
    site = Site(LOCAL)
    assert site("POST", "/v1/sessions", {"sec-fetch-site": "cross-site"}).status_code == 403
    assert site("POST", "/v1/sessions", {"sec-fetch-site": "same-origin"}).status_code == 200
    assert site("GET", "/", {"sec-fetch-site": "cross-site"}).status_code == 200


def test_an_allowed_origin_gets_cors_and_no_token() -> None:
    site = Site(dataclasses.replace(REMOTE, origins=frozenset({"https://friend.example"})))
    asks = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    preflight = site("OPTIONS", "/v1/sessions", asks)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
    assert site("POST", "/v1/sessions", {"origin": "https://friend.example"}).status_code == 401
    answer = site("POST", "/v1/sessions", {"origin": "https://friend.example", **bearer()})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://friend.example")


def test_wrong_tokens_are_counted_by_client_and_right_ones_wait_too() -> None:
    site = Site(dataclasses.replace(REMOTE, guesses_per_minute=3))
    cookie = site("GET", f"/?token={TOKEN}").headers["set-cookie"].partition(";")[0]
    assert [site("GET", "/v1/models", bearer("x" * 20)).status_code for _ in range(5)] == [401, 401, 401, 429, 429]
    answer = site("GET", "/v1/models", bearer())
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    assert site("GET", f"/?token={TOKEN}", PAGE).status_code == 429
    assert site("GET", "/", {"cookie": cookie}).status_code == 200
    assert site("GET", "/v1/models", bearer(), client="192.0.2.8").status_code == 200
    site.now_s += 21
    assert site("GET", "/v1/models", bearer()).status_code == 200


def test_openings_are_counted_by_client() -> None:
    site = Site(dataclasses.replace(LOCAL, sessions_per_minute=2))
    assert [site("POST", path).status_code for path in ("/v1/sessions", "/v1/whip", "/v1/sessions")] == [200, 200, 429]
    assert site("GET", "/v1/models").status_code == 200
    assert site("POST", "/v1/sessions", client="2001:db8::1").status_code == 200
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1:1") != client_key("2001:db8:0:1::1")
    assert client_key("::ffff:192.0.2.7") == "192.0.2.7"


def test_the_memory_of_clients_is_bounded() -> None:
    buckets = Buckets(1)
    for number in range(5000):
        assert buckets.take(f"client {number}", 0.0) == 0
    assert buckets.wait_s("client 4999", 0.0) == 60
    assert buckets.wait_s("client 0", 0.0) == 0  # forgotten
    assert buckets.wait_s("client 4999", -100.0) == 60  # a clock that was set back


async def pieces(count: int, size: int = 1000) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


@pytest.mark.parametrize("streamed", [False, True])
def test_bodies_are_capped_by_route(streamed: bool) -> None:
    site = Site(dataclasses.replace(LOCAL, body_bytes=5000, upload_bytes=20_000))
    for path, count, status in (("/v1/generate", 5, 200), ("/v1/generate", 6, 413), ("/gradio_api/upload", 20, 200)):
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


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_guard_options(parser)
    return parser.parse_args(arguments)


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
    assert "now asks every visitor for a token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token", "short"), "--token has 5 characters"),
        (("--token", "schlüssel-mit-umlaut"), "beyond ASCII"),
        (("--allow-host", "http://a.example"), "--allow-host 'http://a.example' is not a name"),
        (("--allow-origin", "a.example"), "--allow-origin 'a.example' is not an origin"),
        (("--allow-origin", "https://a.example/path"), "is not an origin"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        guard_options(parsed(*arguments), "127.0.0.1", 7860)


def test_logs_show_no_token(caplog: pytest.LogCaptureFixture) -> None:
    secrets = ("1790.signed", "sessiontoken", TOKEN)
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
    assert "a=b" in caplog.text
    assert "failed with status 5" in caplog.text
    assert [secret for secret in secrets if secret in caplog.text] == []
    assert HideTokens().clean("a token of 5 bytes") == "a token of 5 bytes"


# ---- through a real server ----


@contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found


@asynccontextmanager
async def served(echo: Echo, **changes: Any) -> AsyncIterator[str]:
    """A guarded echo behind uvicorn; gives its "host:port"."""
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
    """101, or the status that the handshake was refused with."""
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
    """Send by hand; status, JSON and whether the server hung up."""
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
