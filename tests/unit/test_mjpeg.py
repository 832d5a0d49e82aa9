"""Motion JPEG has the limits of the stream's other doors: readers per session, and time to take what was sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.types import Message

from app.api.context import ApiContext
from app.api.stream import mjpeg
from app.api.stream.connection import StreamLimits
from app.api.stream.mjpeg import MjpegReaders, MjpegResponse
from app.media.picture import jpeg
from app.session.session import Session
from app.session.table import SessionTable
from app.worker.handle import WorkerHandle
from pipelines.core.types import Picture
from tests.fakes.api_server import api_server
from tests.fakes.stream_server import wait_until, worker_client

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "GET", "path": "/", "headers": []}


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    with worker_client() as made:
        made.wait_ready(60)
        yield made


def watched(worker: WorkerHandle, tmp_path: Path, client: Callable[[MjpegResponse, Session], Awaitable[None]]) -> None:
    """Let `client` read a response whose reader has 0.3 s to take what was sent."""
    table = SessionTable(worker)
    with ThreadPoolExecutor(1) as codecs:
        session = table.open(prompt_only=True)
        context = ApiContext(table=table, codecs=codecs, data=tmp_path, model="identity")
        try:

            async def run() -> None:
                readers = MjpegReaders(context, StreamLimits(send_s=0.3, per_session=1))
                await client(MjpegResponse(context, session, 85, readers), session)

            asyncio.run(run())
        finally:
            table.stop()


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("taken", [0, 1, 5], ids=["not even the header", "the header", "some pictures"])
def test_a_reader_that_takes_nothing_gives_its_place_back_and_may_read_on(
    worker: WorkerHandle, tmp_path: Path, taken: int
) -> None:
    async def client(response: MjpegResponse, session: Session) -> None:
        sent, reads_on = list[Message](), asyncio.Event()

        async def send(message: Message) -> None:
            if len(sent) >= taken:
                await reads_on.wait()
            sent.append(message)

        task = asyncio.create_task(response(SCOPE, never, send))
        await until(lambda: session.read().connections == 1)
        await until(lambda: session.read().connections == 0)
        assert not task.done()
        reads_on.set()
        await asyncio.wait_for(task, 5)
        assert sent[-1].get("more_body") is False  # the end, and no picture from before the pause
        assert session.read().connections == 0

    watched(worker, tmp_path, client)


def test_a_slow_reader_stays(worker: WorkerHandle, tmp_path: Path) -> None:
    async def client(response: MjpegResponse, session: Session) -> None:
        sent = list[Message]()

        async def send(message: Message) -> None:
            await asyncio.sleep(0.15)
            sent.append(message)

        task = asyncio.create_task(response(SCOPE, never, send))
        await until(lambda: len(sent) > 7)
        assert session.read().connections == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert session.read().connections == 0

    watched(worker, tmp_path, client)


def test_readers_of_the_same_frame_share_its_encoding(
    worker: WorkerHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()

    def counted(image: Picture, quality: int) -> bytes:
        made.append(quality)
        return jpeg(image, quality)

    monkeypatch.setattr(mjpeg, "jpeg", counted)

    async def client(response: MjpegResponse, session: Session) -> None:
        readers, feed = response._readers, session.feed()
        first, second = [await anext(aiter(feed)) for _ in range(2)]
        parts = await asyncio.gather(*(readers.part(session, first, quality) for quality in (85, 85, 85, 50)))
        assert made == [85, 50]
        assert parts[0] == parts[1] == parts[2]
        assert len(parts[3]) < len(parts[0])
        asking = [asyncio.create_task(readers.part(session, second, 85)) for _ in range(2)]
        await asyncio.sleep(0)
        asking[0].cancel()  # one leaves; the other still gets it
        assert (await asking[1]).startswith(b"Content-Type: image/jpeg\r\n")
        assert made == [85, 50, 85]
        readers.enter(session)
        readers.leave(session)
        assert not readers._newest
        feed.close()

    watched(worker, tmp_path, client)


def test_a_session_has_four_readers_and_a_place_is_free_again_when_one_leaves(
    worker: WorkerHandle, tmp_path: Path
) -> None:
    with api_server(worker, tmp_path) as server, ExitStack() as open_ones:
        made, other = (server.http.post("/v1/sessions", json={"prompt_only": True}).json() for _ in range(2))
        first = server.http.stream("GET", made["mjpeg_url"])
        with first as answer:
            assert answer.status_code == 200
            for _ in range(3):
                again = open_ones.enter_context(server.http.stream("GET", made["mjpeg_url"]))
                assert again.status_code == 200
            refused = open_ones.enter_context(server.http.stream("GET", made["mjpeg_url"]))
            assert refused.status_code == 503
            refused.read()
            assert refused.json()["error"]["code"] == "busy"
            assert "Retry-After" in refused.headers
            token = {"Authorization": f"Bearer {made['token']}"}
            assert server.http.get(f"/v1/sessions/{made['id']}", headers=token).json()["connections"] == 4
            assert open_ones.enter_context(server.http.stream("GET", other["mjpeg_url"])).status_code == 200

        def free() -> bool:
            return open_ones.enter_context(server.http.stream("GET", made["mjpeg_url"])).status_code == 200

        wait_until(free)
