"""Asks an application for some of its pages before anybody else can.

What is made at the first request only (routes that are put together, templates that are compiled, documents that are
written) would block the event loop for tenths of a second while others stream. Knows no page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.types import ASGIApp, Message, Scope


def warm_up(app: ASGIApp, paths: Iterable[str]) -> None:
    """GET each of `paths` on an event loop of its own, in a thread. Raises RuntimeError where the answer is not 200."""

    async def visit_all() -> None:
        for path in paths:
            status = await _visit(app, path)
            if status != 200:
                raise RuntimeError(f"{path} is answered with {status} at the start")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(visit_all())).result()


async def _visit(app: ASGIApp, path: str) -> int:
    """The status of the answer; 0: none came."""
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
    asked, answered = False, asyncio.Event()

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await answered.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif not message.get("more_body", False):
            answered.set()

    await app(scope, receive, send)
    return status
