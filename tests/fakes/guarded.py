"""A guarded application that records what reaches it, called without a network."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections.abc import AsyncIterator

import httpx
from starlette.types import Receive, Scope, Send

from app.cli.guard_options import add_guard_options
from app.guard.middleware import Guard
from app.guard.rules import GuardOptions

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
                raise RuntimeError("the client disconnected")
            self.body_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(self.body_bytes).encode()})


class Site:
    """Sends requests to a guarded echo, one for each call. now_s: the guard's clock."""

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
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(self.guard, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url=base) as http:
                return await http.request(method, path, headers=headers, content=content)

        return asyncio.run(request())


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_guard_options(parser)
    return parser.parse_args(arguments)
