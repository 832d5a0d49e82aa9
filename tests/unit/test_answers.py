"""One shape for every refusal: wrong methods, unknown addresses, the system's errors, file responses, odd addresses."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fastapi
import httpx
import pytest
from starlette.types import ASGIApp

from app.api.context import ApiContext, ApiLimits
from app.api.errors import CODES
from app.api.routes import include_all, new_application
from app.guard.middleware import Guard
from app.guard.rules import GuardOptions, origin_allowed
from app.outputs.push_hosts import PushHosts
from app.outputs.transports import address_of
from app.outputs.whip_push import WhipPushOptions
from app.page.prompts import Prompts
from app.server.front import make_application
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle
from pipelines.core.errors import InputError
from tests.fakes.api_server import api_server
from tests.fakes.guarded import BASE, LOCAL, TOKEN, Site
from tests.fakes.stream_server import worker_client

ODD = ("http://[", "http://[::1", "http://a]b", "http://[not-an-address]", "http://a℀b", "http://[v1.x]]:7860")


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    with worker_client() as made:
        yield made


@pytest.fixture(scope="module")
def context(worker: WorkerHandle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiContext]:
    with ThreadPoolExecutor(2) as codecs:
        table = SessionTable(worker)
        yield ApiContext(table=table, codecs=codecs, data=tmp_path_factory.mktemp("data"), model="identity")
        table.stop()


@pytest.fixture(scope="module")
def front(context: ApiContext) -> ASGIApp:
    async def make() -> ASGIApp:
        return make_application(context, Prompts(), guard=partial(Guard, options=LOCAL))

    return asyncio.run(make())


def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    async def play() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(play())


def error_of(answer: httpx.Response) -> dict[str, str]:
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, dict[str, str]] = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "remedy"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/sessions", "POST"),
        ("GET", "/v1/sessions", "POST"),
        ("BREW", "/v1/jobs", "POST"),
        ("POST", "/v1/sessions/x", "DELETE, GET, PATCH"),
        ("PUT", "/v1/sessions/x/outputs", "GET, POST"),
        ("GET", "/v1/sessions/x/whip", "OPTIONS, POST"),
        ("DELETE", "/v1/openapi.json", "GET, HEAD"),
        ("DELETE", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("PATCH", "/metrics", "GET"),
        ("GET", "/page/notice", "POST"),
        ("POST", "/page/status", "GET"),
    ],
)
def test_a_wrong_method_is_told_which_are_right_and_they_are(
    front: ASGIApp, method: str, path: str, allow: str
) -> None:
    answer = ask(front, method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    error = error_of(answer)
    assert error["code"] == "method_not_allowed"
    assert error["remedy"] == f"Use {allow.replace(', ', ' or ')}."
    assert all(ask(front, right, path).status_code != 405 for right in allow.split(", "))


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/nope", "/v1/", "/v1/sessions/", "/v1/sessions/x/stream", "/v1//sessions", "/page/nope", "/healthz/x"),
        *("/nope", "/assets/nope.js", "/static/img/nope.svg", "/gradio_api/info"),
    ],
)
def test_an_unknown_address_is_not_found_whoever_is_behind_it(front: ASGIApp, path: str) -> None:
    answer = ask(front, "GET", path)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"


@pytest.mark.parametrize(
    ("error", "told", "remedy"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/me/secret"), "No space left", "make room"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota exceeded", "make room"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/home/me/secret"), "denied", "--data"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/home/me/secret"), "No such file", "terminal"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files", "later"),
        (OSError("nothing more"), "OSError", "terminal"),
        (RuntimeError("File at path /home/me/secret does not exist."), "RuntimeError", "terminal"),
        (KeyError("secret"), "KeyError", "terminal"),
    ],
)
def test_what_the_system_refuses_and_faults_of_our_own_have_that_shape_too(
    context: ApiContext, error: Exception, told: str, remedy: str
) -> None:
    async def fail() -> None:
        raise error

    app, more = new_application(), fastapi.APIRouter()
    more.add_api_route("/v1/fails", fail)
    include_all(app, context, more)
    answer = ask(app, "GET", "/v1/fails")
    assert answer.status_code == 500
    found = error_of(answer)
    assert found["code"] == "failed"
    assert told in found["message"]
    assert remedy in found["remedy"]
    assert "secret" not in answer.text


def test_a_folder_that_cannot_be_made(worker: WorkerHandle, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    with api_server(worker, tmp_path / "data") as server:
        answer = server.http.post("/v1/jobs", files={"options": (None, '{"seconds": 0.1}')})
        assert answer.status_code == 500
        assert "cannot be made" in error_of(answer)["message"]


def test_ranges_that_do_not_fit_and_a_file_that_is_gone(worker: WorkerHandle, tmp_path: Path) -> None:
    recording = tmp_path / "recordings/20260101-000000-0123456789abcdef0123456789abcdef.mp4"
    recording.parent.mkdir()
    recording.write_bytes(bytes(100))
    url = "/v1/recordings/0123456789abcdef0123456789abcdef/file"
    with api_server(worker, tmp_path) as server:
        assert server.http.get(url, headers={"range": "bytes=0-9"}).status_code == 206
        answer = server.http.get(url, headers={"range": "bytes=500-"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */100")
        assert error_of(answer)["code"] == "bad_input"
        answer = server.http.get(url, headers={"range": "bytes=9-1"})
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "bad_input"
        recording.unlink()
        assert error_of(server.http.get(url))["code"] == "not_found"


@pytest.mark.parametrize("address", ODD)
def test_an_address_that_is_none_is_refused_and_fails_nothing(address: str) -> None:
    assert not origin_allowed(LOCAL, address, "localhost:7860", "http")
    if address.isascii():  # a header can hold nothing else here
        assert error_of(Site(LOCAL)("POST", "/v1/sessions", {"origin": address}))["code"] == "forbidden"
    hosts = PushHosts.of(("a.example",), private=True)
    for scheme in ("rtmp", "srt", "https"):
        with pytest.raises(InputError):
            hosts.check(address.replace("http", scheme))
    for scheme in ("rtmp", "rtmps", "srt"):
        with pytest.raises(InputError, match="address to push to"):
            address_of(address.replace("http", scheme) + "/live")
    with pytest.raises(InputError, match="WHIP address"):
        WhipPushOptions(url=address)


def test_an_output_s_address_that_is_none_is_400(worker: WorkerHandle, tmp_path: Path) -> None:
    with api_server(worker, tmp_path, push_hosts=PushHosts(any_host=True)) as server:
        made = server.http.post("/v1/sessions", json={"prompt_only": True}).json()
        headers = {"authorization": f"Bearer {made['token']}"}
        for rest in ("://[::1/x", "://a:99999/x", "://a℀b/x", "://[::1]]/x"):
            for kind, scheme in (("whip", "https"), ("rtmp", "rtmp"), ("srt", "srt")):
                answer = server.http.post(
                    f"/v1/sessions/{made['id']}/outputs", json={"kind": kind, "address": scheme + rest}, headers=headers
                )
                assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_input"), (kind, answer.text)


@pytest.mark.parametrize("number", ["1e308", "1e999", "1" + "0" * 400, "1e-320", "-1", "0"])
def test_numbers_that_no_engine_can_use_are_422_at_every_door(
    worker: WorkerHandle, tmp_path: Path, number: str
) -> None:
    part = f'{{"text": "a cat", "weight": {number}}}'
    bodies = (
        f'{{"controls": {{"prompt": [{part}, {part}]}}}}',
        f'{{"controls": {{"prompt": "a cat:{number} | a dog"}}}}',
        f'{{"controls": {{"strength": {number}}}}}',
    )
    with api_server(worker, tmp_path) as server:
        for body in bodies:
            answer = server.http.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_control"), body[:80]
            answer = server.http.post("/v1/generate", files={"options": (None, body)})
            assert (answer.status_code, error_of(answer)["code"]) == (422, "bad_control"), body[:80]
        assert server.table.sessions == ()


def test_every_operation_documents_what_the_guard_answers_and_answers_it_in_that_shape(
    worker: WorkerHandle, tmp_path: Path
) -> None:
    guard = GuardOptions(port=1, hosts=frozenset(), token=TOKEN, guesses_per_minute=1)
    with api_server(worker, tmp_path, guard=guard) as server:
        paths = server.app.openapi()["paths"]
        operations = [(method.upper(), path, item) for path, all_of in paths.items() for method, item in all_of.items()]
        assert len(operations) > 35
        asked = set()
        for method, path, operation in operations:
            documented = {int(status) for status in operation["responses"]}
            assert {401, 403, 429, 500} <= documented, path
            assert ({408, 413} <= documented) is ("requestBody" in operation), path
            url = re.sub(r"\{[^}]+\}", "x", path)
            for headers in ({}, {"authorization": f"Bearer {'x' * 20}"}, {"origin": "https://other.example"}):
                answer = server.http.request(method, url, headers=headers)
                assert answer.status_code in documented, (method, path, answer.status_code)
                if answer.status_code >= 400:
                    assert error_of(answer)["code"] in CODES
                asked.add(answer.status_code)
        assert asked >= {204, 401, 403, 429}  # 204: OPTIONS of a session, which tells nothing of it
        for path in ("/v1/jobs/{job_id}/file", "/v1/recordings/{recording_id}/file"):
            assert {"206", "400", "416"} <= paths[path]["get"]["responses"].keys()


def test_a_refusal_of_too_large_a_body_ends_the_connection(worker: WorkerHandle, tmp_path: Path) -> None:
    limits = ApiLimits(text_bytes=1000, message_bytes=2000, upload_bytes=3000)
    with api_server(worker, tmp_path, limits) as server:
        for path, field in (("/v1/jobs", "video"), ("/v1/generate", "picture"), ("/v1/generate", "options")):
            answer = server.http.post(path, files={field: ("x", bytes(5000))})
            assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")
            assert answer.headers["connection"] == "close"
        answer = server.http.post("/v1/whip", content="v" * 100_000, headers={"content-type": "application/sdp"})
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")
