"""Requests some of an application's pages before it serves clients.

Work done lazily on the first request (building routes, compiling templates, generating documents) would otherwise block
the event loop for tenths of a second while others stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.types import ASGIApp, Message, Scope


def warm_up(app: ASGIApp, paths: Iterable[str]) -> None:
    """GET each of `paths` on a separate event loop, in a thread. Raises RuntimeError unless the response is 200."""

    async def visit_all() -> None:
        for path in paths:
            status = await _visit(app, path)
            if status != 200:
                raise RuntimeError(f"{path} responds with {status} at startup")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(visit_all())).result()


async def _visit(app: ASGIApp, path: str) -> int:
    """The status of the response; 0: there was none."""
    status = 0
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"accept", b"text/html,*/*")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
    requested, responded = False, asyncio.Event()

    async def receive() -> Message:
        nonlocal requested
        if requested:
            await responded.wait()
            return {"type": "http.disconnect"}
        requested = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif not message.get("more_body", False):
            responded.set()

    await app(scope, receive, send)
    return status
