"""Below a reverse proxy's path: requests with and without it, the guard's redirects and cookies, addresses in answers.

The page in a browser and real proxies: tests/e2e/test_reverse_proxy.py.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from app.cli.guard_options import add_guard_options, links
from app.client import ZoetropeClient
from app.page import page as page_module
from app.server.root_path import RootPath, checked_root_path
from pipelines.core.errors import InputError
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.guarded import BASE, LOCAL, PAGE, REMOTE, TOKEN, Echo, Site
from tests.fakes.stream_server import noise, wait_until, worker_client

ROOT = "/media/zoe"
SDP = {"Content-Type": "application/sdp"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with worker_client() as worker, api_server(worker, tmp_path_factory.mktemp("data"), root_path=ROOT) as made:
        yield made


class Below(Site):
    """The guarded echo below ROOT."""

    def __init__(self) -> None:
        super().__init__(REMOTE)
        self.guard = RootPath(self.guard, ROOT)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("given", "path"),
    [("", ""), ("/", ""), ("/zoe", "/zoe"), ("/zoe/", "/zoe"), (" /a/b-1/~c.d/ ", "/a/b-1/~c.d"), ("/v11", "/v11")],
)
def test_a_root_path_is_taken_with_and_without_a_slash_at_its_end(given: str, path: str) -> None:
    assert checked_root_path(given) == path


@pytest.mark.parametrize(
    "given",
    [
        "zoe",
        "https://example.org/zoe",
        "/a//b",
        "/a/../b",
        "/.",
        "/a b",
        "/é",
        "/a?b",
        "/a%2fb",
        "/v1",
        "/Assets/x",
        "/page",
    ]
    + ["//example.org", "/a\r\nb", "/{x}"],
)
def test_another_root_path_is_refused_with_one_that_works(given: str) -> None:
    with pytest.raises(InputError) as refusal:
        checked_root_path(given)
    (example,) = re.findall(r"e\.g\. (/\w+)", refusal.value.remedy)
    assert checked_root_path(example) == example


def test_the_application_sees_the_same_paths_whether_the_proxy_strips_the_prefix_or_not() -> None:
    echo = Echo()
    app = RootPath(echo, ROOT)

    async def ask(*paths: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE) as http:
            return [await http.get(path) for path in paths]

    asyncio.run(ask(f"{ROOT}/", f"{ROOT}/v1/models", "/v1/models", "/", f"{ROOT}x/y", "/media"))
    assert echo.calls == ["/", "/v1/models", "/v1/models", "/", f"{ROOT}x/y", "/media"]
    (bare,) = asyncio.run(ask(f"{ROOT}?token=a%20b"))
    assert (bare.status_code, bare.headers["location"]) == (307, f"{ROOT}/?token=a%20b")


@pytest.mark.parametrize("prefix", ["", ROOT])
def test_signing_in_stays_below_the_path(prefix: str) -> None:
    site = Below()
    form = site("GET", f"{prefix}/", PAGE)
    assert form.status_code == 401
    assert f'action="{ROOT}/"' in form.text
    answer = site("GET", f"{prefix}/?token={TOKEN}&view=split", PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{ROOT}/?view=split")
    assert f"Path={ROOT}/;" in answer.headers["set-cookie"]
    visit = {**PAGE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert f'content="0;url={ROOT}/"' in site("GET", f"{prefix}/", visit).text
    assert site("GET", f"{prefix}/v1/models").status_code == 401
    assert site.echo.calls == []


def test_the_printed_link_has_the_path() -> None:
    parser = argparse.ArgumentParser()
    add_guard_options(parser)
    root_path = checked_root_path(parser.parse_args(["--root-path", f"{ROOT}/"]).root_path)
    assert links(LOCAL, "127.0.0.1", tls=False, root_path=root_path) == [f"http://127.0.0.1:7860{ROOT}/"]
    assert links(LOCAL, "127.0.0.1", tls=False) == ["http://127.0.0.1:7860/"]


@pytest.mark.parametrize("prefix", ["", ROOT])
def test_every_address_in_an_answer_has_the_path_and_works(server: ApiServer, prefix: str) -> None:
    answer = server.http.post(f"{prefix}/v1/sessions", json={"prompt_only": True})
    made = answer.json()
    token = {"Authorization": f"Bearer {made['token']}"}
    assert answer.headers["location"] == f"{ROOT}/v1/sessions/{made['id']}"
    shown = server.http.get(answer.headers["location"], headers=token).json()
    addresses = [made[f"{name}_url"] for name in ("stream", "mjpeg", "whip", "whep")] + [shown["mjpeg_url"]]
    assert [address.startswith(f"{ROOT}/v1/sessions/{made['id']}/") for address in addresses] == [True] * 5
    with connect(server.url.replace("http", "ws") + made["stream_url"]) as socket:
        socket.send(f'{{"type": "hello", "version": 1, "token": "{made["token"]}"}}')
        assert '"ready"' in str(socket.recv(timeout=10))
    with server.http.stream("GET", shown["mjpeg_url"]) as video:
        assert video.status_code == 200
    output = server.http.post(f"{prefix}/v1/sessions/{made['id']}/outputs", json={"kind": "recording"}, headers=token)
    assert output.headers["location"] == f"{ROOT}/v1/sessions/{made['id']}/outputs/{output.json()['id']}"
    path = f"{prefix}/v1/recordings/{output.json()['recording']}"
    wait_until(lambda: server.http.get(path).status_code == 200)  # from its first picture on
    recording = server.http.get(path).json()
    assert recording["file_url"] == output.json()["file_url"] == f"{ROOT}/v1/recordings/{recording['id']}/file"
    assert server.http.delete(output.headers["location"], headers=token).status_code == 200
    assert server.http.delete(answer.headers["location"], headers=token).status_code == 204


def test_a_connection_and_a_job_have_the_path_too(server: ApiServer) -> None:
    from aiortc import RTCPeerConnection

    async def offer() -> str:
        peer = RTCPeerConnection()
        peer.addTransceiver("video", direction="sendonly")
        await peer.setLocalDescription(await peer.createOffer())
        await peer.close()
        return peer.localDescription.sdp

    answer = server.http.post(f"{ROOT}/v1/whip", content=asyncio.run(offer()), headers=SDP)
    assert answer.headers["location"].startswith(f"{ROOT}/v1/whip/")
    assert server.http.delete(answer.headers["location"]).status_code == 200
    job = server.http.post(f"{ROOT}/v1/jobs", files={"options": (None, '{"seconds": 0.1, "format": "mkv"}')})
    assert job.headers["location"] == job.json()["url"] == f"{ROOT}/v1/jobs/{job.json()['id']}"
    assert job.json()["file_url"] == f"{job.json()['url']}/file"
    assert server.http.delete(job.json()["url"]).status_code == 204


def test_the_documents_name_the_path(server: ApiServer) -> None:
    assert server.http.get(f"{ROOT}/v1/openapi.json").json()["servers"][0]["url"] == ROOT
    channel = server.http.get("/v1/asyncapi.json").json()["channels"]["stream"]
    assert channel["address"] == ROOT + "/v1/sessions/{id}/stream"


@pytest.mark.parametrize("below", ["", ROOT])
def test_the_client_takes_the_whole_address(server: ApiServer, below: str) -> None:
    async def work() -> None:
        async with ZoetropeClient(server.url + below) as client:
            assert await client.models()
            async with client.stream(picture_format="rgb") as stream:
                await stream.send(noise(1))
                assert (await anext(stream)).image.shape == (24, 32, 3)
            job = await client.start_job("a cat", seconds=0.1, options={"format": "mkv"})
            assert (await client.read_job(job)).id == job.id
            await client.delete_job(job)

    asyncio.run(work())


@pytest.mark.parametrize(
    "file", sorted((Path(page_module.__file__).parent / "web").iterdir()), ids=lambda file: file.name
)
def test_the_page_asks_for_addresses_relative_to_its_own(file: Path) -> None:
    assert re.findall(r"""["'`(=]/(?:v1|page|assets|static|theme)\b.*""", file.read_text(encoding="utf-8")) == []
