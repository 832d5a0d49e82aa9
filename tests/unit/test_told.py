"""Places of files on the server are not told to clients: of each path only the last name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastapi
import httpx
import pytest

from app.api.schema import JobView
from app.api.stream.messages import Ended, ErrorMessage, Notice, Restarting, dump
from app.api.told import model_name, told
from app.page.prompts import Prompts
from app.server.front import page_routes
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.api_server import api_server
from tests.fakes.stream_server import wait_until


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("There is no model '/home/me/private/mymodel'.", "There is no model 'mymodel'."),
        ("loading /home/me/private/mymodel…", "loading mymodel…"),
        ('no file "/home/my name/a b/c d.safetensors" here', 'no file "c d.safetensors" here'),
        ("`/srv/x/y z`: cut off", "`y z`: cut off"),
        ("(~/.cache/huggingface/hub)", "(hub)"),
        ("./models/private/mymodel and ../other/one", "mymodel and one"),
        ("file:///srv/models/one.pt, /srv/two.pt: bad", "one.pt, two.pt: bad"),
        ("/srv/private/folder/ is not a folder", "folder is not a folder"),
        ("[Errno 2] No such file or directory: '/srv/private/x'", "[Errno 2] No such file or directory: 'x'"),
        ("--data=/srv/private/data", "--data=data"),
        ("a|/srv/private/x|b", "a|x|b"),
        ("one /secret", "one secret"),
    ],
)
def test_a_path_becomes_its_last_name(text: str, shown: str) -> None:
    assert told(text) == shown
    assert told(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "See the OpenAPI document at /v1/openapi.json.",
        "Check with GET /readyz, POST /v1/sessions or /v1/jobs/x/file.",
        "stabilityai/sd-turbo, 512×512, 12/240 frames, n/a, km/h, a / b, and/or",
        "rtmp://host:1935/…: broken; https://example.org/a/b, srt://h:1",
        "OSC on 127.0.0.1:9000, /zoetrope/CONTROL VALUE",
        "image/png, ~50 %, ... and / or",
        "",
    ],
)
def test_what_is_no_place_stays(text: str) -> None:
    assert told(text) == text


def test_known_places_go_wherever_they_are() -> None:
    assert told("loading /my models/x y…", ("/my models/x y",)) == "loading x y…"
    assert told("loading weights/a/b…", ("weights/a/b",)) == "loading b…"
    assert told("loading owner/name and identity", ("owner/name", "identity")) == "loading owner/name and identity"
    names = {
        "identity": "identity",
        "owner/name": "owner/name",
        "/a/b c": "b c",
        "./x": "x",
        "~/x/y": "y",
        "a/b/c": "c",
    }
    assert {name: model_name(name) for name in names} == names


def test_every_text_to_clients_is_told_so() -> None:
    place = "/home/me/private/thing"
    messages = [
        ErrorMessage(code="worker", message=place, remedy=place),
        Notice(text=place),
        Restarting(text=place),
        Ended(message=place, remedy=place),
    ]
    job = JobView(
        id="x", state="failed", frames=0, total_frames=None, progress=0, message=place, notes=[place], url="/v1/jobs/x",
        file_url="/v1/jobs/x/file",
    )  # fmt: skip
    for text in (*map(dump, messages), job.model_dump_json()):
        assert "private" not in text
        assert "thing" in text
    assert '"/v1/jobs/x/file"' in job.model_dump_json()


@contextmanager
def failing_worker(place: Path) -> Iterator[WorkerHandle]:
    options = WorkerOptions(model=str(place), engine=LoaderOptions())
    with WorkerHandle(options) as worker:
        yield worker


def test_a_model_s_place_is_in_no_answer_when_it_cannot_be_loaded(tmp_path: Path) -> None:
    place = tmp_path / "private place" / "mymodel"
    with failing_worker(place) as worker, api_server(worker, tmp_path / "data") as server:
        wait_until(lambda: server.http.get("/readyz").json() == {"status": "failed"})
        answer = server.http.post("/v1/sessions")
        assert answer.status_code == 503
        assert "mymodel" in answer.json()["error"]["message"]
        page = fastapi.FastAPI()
        page.include_router(page_routes(worker, Prompts(), str(place)))

        async def status() -> httpx.Response:
            transport = httpx.ASGITransport(page)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.get("/page/status")

        shown = asyncio.run(status())
        assert "mymodel" in shown.text
        for text in (answer.text, shown.text, server.http.get("/metrics").text, server.http.get("/v1/models").text):
            assert "private" not in text
            assert str(tmp_path) not in text
