"""The guard's rules: names, origins, tokens, rates."""

from __future__ import annotations

import dataclasses

import pytest

from app.cli.guard_options import guard_options
from app.guard.rules import Buckets, client_key
from tests.fakes.guarded import BASE, LOCAL, PAGE, REMOTE, SESSION, TOKEN, Site, bearer, parsed


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
    assert "requires a token" in page.text
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
