"""Access control in front of everything: /v1, health, metrics, the page, and Gradio's upload, file and API routes.

ASGI, HTTP and WebSocket. Checks Host, Origin, token, rate and body, in this order (app/guard/rules.py); a session's own
routes check the session's token themselves.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import Refusal, answer_hop, answer_json, answer_page, answer_preflight, answer_redirect, deny_socket
from .body import BodyGate, too_large
from .request import GuardedRequest
from .rules import (
    SAFE_METHODS,
    Buckets,
    GuardOptions,
    body_cap,
    checks_session_token,
    host_allowed,
    of_session,
    opens_session,
    origin_allowed,
)
from .tokens import same, sign, verify

_COOKIE_S = 30 * 24 * 3600
_FORM_BYTES = 4096
_SUBJECT = "page"
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
    (b"access-control-allow-headers", b"Authorization, Content-Type, If-Match"),
    (b"access-control-max-age", b"600"),
)
_HOST = Refusal(
    status=403,
    code="forbidden",
    message="This server does not accept the host name in the URL.",
    remedy="Use the address that it printed, or start it with --allow-host NAME:PORT.",
    close_code=4403,
)
_ORIGIN = Refusal(
    status=403,
    code="forbidden",
    message="Pages of other sites may not use this server.",
    remedy="Start it with --allow-origin SCHEME://HOST:PORT if that page is yours.",
    close_code=4403,
)
_NO_TOKEN = Refusal(
    status=401,
    code="unauthorised",
    message="This server requires a token.",
    remedy="Send the header Authorization: Bearer TOKEN, or open the link that it printed.",
    close_code=4401,
)
_WRONG_TOKEN = replace(_NO_TOKEN, message="Wrong token.", remedy="Use the one that the server printed at startup.")


class Guard:
    """ASGI middleware. clock: seconds since the epoch; a parameter for tests."""

    def __init__(self, app: ASGIApp, options: GuardOptions, *, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._options = options
        self._clock = clock
        self._cookie = f"zoetrope-{options.port}"  # cookies are shared between ports
        self._cookie_key = hashlib.sha256(b"zoetrope page cookie\0" + (options.token or "").encode()).digest()
        self._openings = Buckets(options.sessions_per_minute)
        self._guesses = Buckets(options.guesses_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = GuardedRequest(scope)
        refusal = self._check_host_and_origin(request)
        if scope["type"] == "websocket":
            await self._socket(request, refusal, receive, send)
            return
        if refusal is not None:
            await _refuse(request, send, refusal)
            return
        if request.cross_origin:
            if request.method == "OPTIONS" and request.header("access-control-request-method"):
                await answer_preflight(send, [*_cors(request), *_PREFLIGHT])
                return
            send = _with_headers(send, _cors(request))
        if self._options.token is not None and request.path == "/" and request.is_sign_in:
            await self._sign_in(request, receive, send)
            return
        refusal = self._check_token(request) or self._check_rate(request)
        if refusal is not None:
            await _refuse(request, send, refusal)
            return
        await self._body(request, receive, send)

    # ---- the rules, in order; None: allowed ----

    def _check_host_and_origin(self, request: GuardedRequest) -> Refusal | None:
        """Refuse a host name that is not ours (DNS rebinding), or a page of another site."""
        if request.host is None or not host_allowed(self._options, request.host, request.scheme):
            return _HOST
        if len(request.origins) > 1:
            return _ORIGIN
        if not request.origins:  # not all browsers send it with forms; no page can forge Sec-Fetch-Site
            other_site = request.header("sec-fetch-site") in ("cross-site", "same-site")
            return _ORIGIN if other_site and request.method not in SAFE_METHODS else None
        origin = request.origins[0]
        if origin == "null" and request.path == "/" and request.is_sign_in:
            return None  # our own form, due to the no-referrer policy; the token is checked anyway
        if not origin_allowed(self._options, origin, request.host, request.scheme):
            return _ORIGIN
        request.cross_origin = origin.lower() in self._options.origins
        return None

    def _check_token(self, request: GuardedRequest) -> Refusal | None:
        """Refuse a missing or wrong token, if one is required."""
        token = self._options.token
        if token is None or self._has_cookie(request):
            return None
        bearer = request.bearer
        signed = any(name == "token" for name, _ in request.query)
        if checks_session_token(request.kind, request.method, request.path, bearer=bool(bearer), signed=signed):
            return None
        return self._check_guess(request, bearer) if bearer else _NO_TOKEN

    def _check_guess(self, request: GuardedRequest, token: str) -> Refusal | None:
        """Compare a token. After too many wrong ones from this client, even the right one has to wait."""
        assert self._options.token is not None
        wait_s = self._guesses.wait_s(request.client, self._clock())
        if wait_s > 0:
            return _too_many("Too many wrong tokens.", wait_s)
        if same(token, self._options.token):
            return None
        self._guesses.take(request.client, self._clock())
        return _WRONG_TOKEN

    def _check_rate(self, request: GuardedRequest) -> Refusal | None:
        if not opens_session(request.method, request.path):
            return None
        wait_s = self._openings.take(request.client, self._clock())
        return _too_many("Too many sessions from this address.", wait_s) if wait_s > 0 else None

    def _has_cookie(self, request: GuardedRequest) -> bool:
        return any(verify(self._cookie_key, _SUBJECT, value, self._clock()) for value in request.cookies(self._cookie))

    # ---- actions ----

    async def _socket(self, request: GuardedRequest, refusal: Refusal | None, receive: Receive, send: Send) -> None:
        refusal = refusal or self._check_token(request)
        if refusal is None:
            await self._app(request.scope, receive, send)
            return
        message = await receive()
        if message["type"] == "websocket.connect":
            await deny_socket(request.scope, send, refusal)

    async def _sign_in(self, request: GuardedRequest, receive: Receive, send: Send) -> None:
        """Handle /?token=... or the form: set the cookie and redirect to the URL without the token."""
        token, others = request.split_token(request.query)
        if request.method == "POST":
            gate = self._gate(request, receive, send, _FORM_BYTES)
            form = await _whole_body(gate)
            if form is None:
                return
            token, _ = request.split_token(parse_qsl(form.decode("utf-8", "replace")))
        refusal = self._check_guess(request, token)
        if refusal is not None:
            await _refuse(request, send, refusal)
            return
        value = sign(self._cookie_key, _SUBJECT, _COOKIE_S, self._clock())
        cookie = f"{self._cookie}={value}; Path={request.home}; Max-Age={_COOKIE_S}; HttpOnly; SameSite=Strict"
        cookie += "; Secure" if request.scheme == "https" else ""
        if request.from_other_site:
            await answer_hop(send, cookie.encode(), request.home)
        else:
            target = f"{request.home}?{urlencode(others)}" if others else request.home
            await answer_redirect(send, target, cookie.encode())

    def _gate(self, request: GuardedRequest, receive: Receive, send: Send, cap_bytes: int) -> BodyGate:
        return BodyGate(
            receive,
            send,
            cap_bytes=cap_bytes,
            patience_s=self._options.body_s,
            bytes_per_s=self._options.body_bytes_per_s,
            declared_bytes=request.body_bytes,
            has_body=request.has_body,
        )

    async def _body(self, request: GuardedRequest, receive: Receive, send: Send) -> None:
        cap_bytes = body_cap(self._options, request.path)
        if request.body_bytes > cap_bytes and not of_session(request.path):
            await _refuse(request, send, too_large(cap_bytes))
            return
        gate = self._gate(request, receive, send, cap_bytes)
        try:
            await self._app(request.scope, gate.receive, gate.send)
        except Exception:  # whatever the application raises on the simulated disconnect
            if not gate.refused:
                raise


async def _whole_body(gate: BodyGate) -> bytes | None:
    """The body; None if it was refused or the client disconnected."""
    body = b""
    while True:
        message = await gate.receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body


async def _refuse(request: GuardedRequest, send: Send, refusal: Refusal) -> None:
    refusal = replace(refusal, hang_up=request.method not in SAFE_METHODS)  # there may be an unread body
    if not request.wants_page or refusal.status not in (401, 429):
        await answer_json(send, refusal)
    elif refusal.message == _NO_TOKEN.message and request.from_other_site:
        await answer_hop(send, None, request.home)
    else:
        await answer_page(send, refusal, request.home)


def _too_many(message: str, wait_s: float) -> Refusal:
    retry_s = max(1, math.ceil(wait_s))
    return Refusal(
        status=429,
        code="busy",
        message=message,
        remedy=f"Try again in {retry_s} s.",
        close_code=1013,
        retry_after_s=retry_s,
    )


def _cors(request: GuardedRequest) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", request.origins[0].encode("latin-1")), (b"vary", b"Origin")]


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", []) if pair[0].lower() != b"access-control-allow-origin"]
            message = {**message, "headers": [*kept, *headers]}
        await send(message)

    return send_with_headers
