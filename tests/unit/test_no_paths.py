"""No path of a request reaches the file system: paths are sent to every route while an audit hook records file
access."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.types import ASGIApp

from app.api.context import ApiContext
from app.page.prompts import Prompts
from app.server.front import make_application
from app.session.table import SessionTable
from tests.fakes.guarded import BASE
from tests.fakes.stream_server import worker_client

CANARY = "zt-canary"
_TOUCHING = ("open", "os.", "shutil.", "glob.", "tempfile.", "ctypes.dlopen", "import")  # audit events
PATHS = (
    f"../../../../tmp/{CANARY}",
    f"/tmp/{CANARY}",
    f"file:///tmp/{CANARY}",
    f"..\\..\\{CANARY}",
    f"%2e%2e%2f{CANARY}",
    f"~/{CANARY}",
    f"{CANARY}\0.png",
)
ENDLESS = "/v1/sessions/{session_id}/mjpeg"
GRADIO = (
    *("/gradio_api/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/static/", "/assets/", "/svelte/"),
    *("/gradio_api/custom_component/x/client/component/", "/gradio_api/deep_link?session_hash=", "/pwa_icon/"),
)


class Watch:
    """Records what this process opens, lists, creates, moves or deletes while `active`. The hook cannot be removed."""

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []
        self.events = 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event.startswith(
            ("open", "os.", "shutil.", "glob.", "tempfile.", "ctypes.dlopen", "import")
        ):
            self.events += 1
            if any(CANARY in str(argument) for argument in arguments[:2]):
                self.seen.append(f"{event} {arguments[:2]}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiContext]:
    with worker_client() as worker, ThreadPoolExecutor(2) as codecs:
        table = SessionTable(worker)
        yield ApiContext(table=table, codecs=codecs, data=tmp_path_factory.mktemp("data"), model="identity")
        table.stop()


def requests(
    document: dict[str, Any], session_id: str, paths: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (method, URL, arguments of httpx): each hostile path in each parameter of each route."""
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            for hostile in paths:
                for known in (quote(hostile, safe=""), session_id):
                    if path == ENDLESS and known == session_id:
                        continue
                    address = path.replace("{session_id}", known)
                    for name in ("job_id", "peer_id", "output_id", "recording_id", "take_id"):
                        address = address.replace(f"{{{name}}}", quote(hostile, safe=""))
                    yield from ((method, f"{address}?token={quote(hostile)}", body) for body in bodies(said, hostile))


def bodies(said: dict[str, Any], hostile: str) -> Iterator[dict[str, Any]]:
    """Return a route's bodies with the path in every text field."""
    kinds = said.get("requestBody", {}).get("content", {})
    if not kinds:
        yield {}
    fields = ("prompt", "negative_prompt", "model", "format", "path", "file", "kind", "address", "device", "name")
    if "application/json" in kinds:
        yield {"json": {"controls": {"prompt": hostile}}}
        yield {"json": {"kind": "recording", "path": hostile}}
        yield {"json": {"kind": "rtmp", "address": hostile}}
        yield from ({"json": {name: hostile}} for name in fields)
    if "multipart/form-data" in kinds:
        file = (hostile, b"no picture", "image/png")
        yield {"files": {"picture": file, "prompt": (None, hostile)}}
        yield {"files": {"video": file, "options": (None, json.dumps({"model": hostile}))}}
        yield from ({"files": {"options": (None, json.dumps({"seconds": 1, name: hostile}))}} for name in fields)
        yield {"files": {hostile: file}}
    if "application/sdp" in kinds:
        yield {"content": hostile.encode(), "headers": {"content-type": "application/sdp"}}


async def play(app: ASGIApp, context: ApiContext, paths: Sequence[str]) -> list[int]:
    """Send all requests. Returns the statuses."""
    session = await asyncio.to_thread(context.table.open)
    session.connect()
    statuses = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, timeout=60) as http:

        async def ask(method: str, address: str, arguments: dict[str, Any]) -> None:
            headers = {"authorization": f"Bearer {session.token}", **arguments.pop("headers", {})}
            answer = await http.request(method, address, headers=headers, **arguments)
            statuses.append(answer.status_code)

        document = (await http.get("/v1/openapi.json")).json()
        for method, address, arguments in requests(document, session.id, paths):
            if (method, address.partition("?")[0]) != ("delete", f"/v1/sessions/{session.id}"):
                await ask(method, address, arguments)
        for hostile in paths:
            for address in GRADIO:
                await ask("get", f"{address}{quote(hostile, safe='/')}", {})
            file = {"path": hostile, "meta": {"_type": "gradio.FileData"}}
            for call in ("queue/join", "run/predict", "call/predict", "upload"):
                await ask("post", f"/gradio_api/{call}", {"json": {"fn_index": 0, "session_hash": "x", "data": [file]}})
    session.disconnect()
    await asyncio.to_thread(session.close)
    return statuses


@pytest.mark.parametrize("paths", [PATHS[:1], pytest.param(PATHS[1:], marks=pytest.mark.soak)], ids=["one", "others"])
def test_no_path_of_a_request_is_opened(context: ApiContext, watch: Watch, paths: Sequence[str]) -> None:
    async def scene() -> list[int]:
        app = make_application(context, Prompts())
        watch.active = True
        try:
            return await play(app, context, paths)
        finally:
            watch.active = False

    statuses = asyncio.run(scene())
    assert watch.seen == []
    assert watch.events > 0
    assert len(statuses) > 100
    assert [status for status in statuses if status == 500] == []
    assert not [path for path in context.data.rglob("*") if CANARY in path.name]
    assert not Path("/tmp", CANARY).exists()


def test_the_watch_sees_what_is_opened(watch: Watch) -> None:
    watch.active = True
    with suppress(OSError):
        Path(f"/nowhere/{CANARY}").read_bytes()
    watch.active = False
    assert len(watch.seen) == 1
    watch.seen.clear()
