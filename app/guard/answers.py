"""The guard's own responses: JSON for programs, a small page for browsers, denied WebSockets.

Independent of the rules and of secrets.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass

from starlette.types import Scope, Send

_PAGE_POLICY = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_STYLE = """
body{margin:0;min-height:100vh;display:grid;place-items:center;background:#0b0c10;color:#e8e8ea;
font:16px/1.5 system-ui,sans-serif}main{width:min(22rem,88vw)}h1{font-size:1.4rem;margin:0 0 .5rem}
p{color:#b4b6bd;margin:.25rem 0 1rem}[role=alert]{color:#ff9d8a}label{display:block;margin-bottom:.4rem}
input,button{box-sizing:border-box;width:100%;padding:.7rem;border-radius:.5rem;font:inherit}
input{background:#16181f;color:inherit;border:1px solid #5b5f6b;margin-bottom:.8rem}
button{background:#e8e8ea;color:#0b0c10;border:0;font-weight:600}:focus-visible{outline:2px solid #7fb4ff}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is refused. close_code: for a WebSocket that is closed before it is accepted (HTTP 403).

    hang_up: close the connection: the rest of the body is not read, so it cannot be reused.
    """

    status: int
    code: str
    message: str
    remedy: str
    close_code: int = 1008
    retry_after_s: int | None = None
    hang_up: bool = False


def headers_of(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """The response headers of a refusal."""
    headers = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    if refusal.hang_up:
        headers.append((b"connection", b"close"))
    return headers


async def answer_json(send: Send, refusal: Refusal) -> None:
    """Respond with the API's error shape."""
    error = {"code": refusal.code, "message": refusal.message, "remedy": refusal.remedy}
    await _answer(send, refusal.status, headers_of(refusal), b"application/json", json.dumps({"error": error}).encode())


async def answer_page(send: Send, refusal: Refusal, home: str) -> None:
    """Respond with the sign-in page; its form posts the token to home, the page's path."""
    alert = f'<p role="alert">{html.escape(refusal.message)} {html.escape(refusal.remedy)}</p>'
    form = (
        f'<form method="post" action="{html.escape(home)}"><label for="token">Token</label>'
        '<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>'
        "<button>Open</button></form>"
    )
    text = "Zoetrope printed the token, and a link with it, in the terminal where it was started."
    await _page(send, refusal.status, headers_of(refusal), f"<h1>Zoetrope</h1>{alert}<p>{text}</p>{form}")


async def answer_hop(send: Send, cookie: bytes | None, home: str) -> None:
    """Respond with a page that goes to home: a redirect begun by another site would go without a Strict cookie."""
    headers = [(b"cache-control", b"no-store"), *([(b"set-cookie", cookie)] if cookie else [])]
    target = html.escape(home)
    head = f'<meta http-equiv="refresh" content="0;url={target}">'
    await _page(send, 200, headers, f'<p><a href="{target}">Open Zoetrope</a></p>', head)


async def answer_redirect(send: Send, location: str, cookie: bytes) -> None:
    """303 to a URL without the token; the cookie keeps the browser signed in."""
    headers = [(b"location", location.encode("ascii")), (b"set-cookie", cookie), (b"cache-control", b"no-store")]
    await _answer(send, 303, headers, b"text/plain", b"")


async def answer_preflight(send: Send, headers: list[tuple[bytes, bytes]]) -> None:
    """204 with the given CORS headers."""
    await _answer(send, 204, headers, b"text/plain", b"")


async def deny_socket(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Refuse a WebSocket before it is accepted: an HTTP response if the server supports it, else a close (403)."""
    if "websocket.http.response" not in scope.get("extensions", {}) or refusal.status == 403:
        await send({"type": "websocket.close", "code": refusal.close_code, "reason": refusal.message[:120]})
        return
    error = {"code": refusal.code, "message": refusal.message, "remedy": refusal.remedy}
    body = json.dumps({"error": error}).encode()
    headers = [*headers_of(refusal), (b"content-type", b"application/json"), (b"content-length", _length(body))]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _page(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: str, head: str = "") -> None:
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Zoetrope</title>{head}<style>{_STYLE}</style></head><body><main>{body}</main></body></html>"
    )
    policy = [(b"content-security-policy", _PAGE_POLICY), (b"referrer-policy", b"no-referrer")]
    await _answer(send, status, [*headers, *policy], b"text/html; charset=utf-8", text.encode())


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], kind: bytes, body: bytes) -> None:
    length = [] if status == 204 else [(b"content-type", kind), (b"content-length", _length(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})


def _length(body: bytes) -> bytes:
    return str(len(body)).encode()
