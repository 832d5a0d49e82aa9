"""Gradio's routes behind the guard: all require the token, and those that the page does not use are closed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest
from fastapi import APIRouter
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from app.api.context import ApiContext
from app.guard.middleware import Guard
from app.guard.rules import GuardOptions
from app.page.prompts import Prompts
from app.server.front import make_application
from app.session.table import SessionTable
from tests.fakes.guarded import BASE, LOCAL, REMOTE, bearer
from tests.fakes.stream_server import worker_client

OPEN = {
    *("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json"),
    *("/static/{path:path}", "/assets/{path:path}"),
}
CLOSED = (
    ("POST", "/gradio_api/upload"),
    ("GET", "/gradio_api/upload_progress?upload_id=x"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/gradio_api/file//etc/passwd"),
    ("GET", "/gradio_api/file=http://127.0.0.1:9/"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1:9/"),
    ("GET", "/gradio_api/info"),
    ("POST", "/gradio_api/call/predict"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("POST", "/gradio_api/run/other"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/vibe-edit"),
    ("GET", "/gradio_api/vibe-code"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/component_server"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/monitoring"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/redoc"),
    ("POST", "/login"),
    ("GET", "/svelte/x.js"),
    ("GET", "/assets/../../etc/passwd"),
    ("GET", "/static/%2e%2e/x"),
    ("OPTIONS", "/"),
)


class Front:
    """The whole application, created as by `zoetrope live`, called without a network."""

    def __init__(self, context: ApiContext, options: GuardOptions) -> None:
        async def make() -> ASGIApp:  # without a running loop Gradio makes some of its own and leaves them open
            return make_application(context, Prompts(), guard=partial(Guard, options=options))

        self.app = asyncio.run(make())

    def ask(self, requests: Iterable[tuple[str, str]], headers: dict[str, str] | None = None) -> list[int]:
        async def play() -> list[int]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=BASE) as http:
                return [(await http.request(method, path, headers=headers)).status_code for method, path in requests]

        return asyncio.run(play())

    def routes(self) -> list[tuple[str, str]]:
        """Return (method, path) of all of Gradio's routes."""
        found = self.app
        while not isinstance(found, APIRouter) and "router" not in vars(found):
            found = vars(found)["_app"]
        mounts = [route for route in vars(found)["router"].routes if isinstance(route, Mount)]
        return [pair for mount in mounts for pair in _walked(mount.routes)]


def _walked(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in sorted(route.methods or ()))
        elif "original_router" in vars(route):  # an included router of FastAPI
            yield from _walked(vars(route)["original_router"].routes)
        elif isinstance(route, Mount):
            yield from _walked(route.routes)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiContext]:
    with worker_client() as worker, ThreadPoolExecutor(2) as codecs:
        table = SessionTable(worker)
        yield ApiContext(table=table, codecs=codecs, data=tmp_path_factory.mktemp("data"), model="identity")
        table.stop()


def filled(path: str) -> str:
    """Return a URL path of the route."""
    return re.sub(r"\{[^}]+\}", "x", path)


def test_every_route_of_gradio_asks_for_the_token_and_only_the_page_s_are_open(context: ApiContext) -> None:
    front = Front(context, REMOTE)
    routes = front.routes()
    paths = {path for _, path in routes}
    assert len(paths) > 60
    assert {"/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/file={path_or_url:path}"} <= paths
    addresses = [(method, filled(path)) for method, path in routes if (method, path) != ("POST", "/")]
    assert {*zip(addresses, front.ask(addresses), strict=True)} == {(address, 401) for address in addresses}
    wrong = front.ask(addresses[:5], bearer("x" * 20))
    assert set(wrong) == {401}
    closed = [(method, filled(path)) for method, path in routes if path not in OPEN]
    assert {*zip(closed, front.ask(closed, bearer()), strict=True)} == {(address, 404) for address in closed}


def test_what_the_page_does_not_use_is_closed_on_this_machine_too(context: ApiContext) -> None:
    front = Front(context, LOCAL)
    assert front.ask(CLOSED) == [404] * len(CLOSED)
    assert front.ask([("GET", "/"), ("GET", "/theme.css"), ("GET", "/healthz"), ("GET", "/page/status")]) == [200] * 4
