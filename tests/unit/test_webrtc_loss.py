"""A two-way peer whose packets are lost, duplicated and reordered on the way to us: pictures continue, for both ways of
releasing frames."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.webrtc.options import WebRtcOptions
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.webrtc_peers import FlatVideo, TestPeer, until
from tests.fakes.webrtc_server import serve

RED, BLUE = (200, 40, 40), (30, 60, 190)
TOLERANCE = 10
LOST, LATE, TWICE = 0.05, 0.1, 0.05


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=64, height=48))
    with WorkerHandle(options, max_sessions=1) as client:
        client.wait_ready(60)
        yield client


class BadRoad:
    """A lossy link between a peer's encoder and the network. counts: of lost, late and duplicated packets."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], rng: random.Random) -> None:
        self.counts = {"lost": 0, "late": 0, "twice": 0}
        self._send, self._rng = send, rng
        self._waiting: set[asyncio.Task[None]] = set()

    async def __call__(self, data: bytes) -> None:
        chance = self._rng.random()
        if chance < LOST:
            self.counts["lost"] += 1
            return
        if chance < LOST + LATE:
            self.counts["late"] += 1
            task = asyncio.create_task(self._later(data))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
            return
        await self._send(data)
        if chance > 1 - TWICE:
            self.counts["twice"] += 1
            await self._send(data)

    async def _later(self, data: bytes) -> None:
        await asyncio.sleep(self._rng.uniform(0.01, 0.08))
        try:
            await self._send(data)
        except ConnectionError:  # closed meanwhile
            return


@pytest.mark.parametrize("codec", ["VP8", "H264"])
@pytest.mark.parametrize("on_marker", [True, False])
def test_pictures_go_on(worker: WorkerHandle, tmp_path: Path, codec: str, on_marker: bool) -> None:
    servers = serve(worker, tmp_path, WebRtcOptions(release_on_marker=on_marker))
    server = next(servers)
    session = server.open()

    async def scene() -> None:
        video = FlatVideo(RED, 320, 240)
        peer = TestPeer(gives=video, takes=True, codec=codec)
        transport = peer.connection.getSenders()[0].transport
        road = BadRoad(transport._send_rtp, random.Random(5))
        vars(transport)["_send_rtp"] = road
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
            headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {session.token}"}
            path = f"/sessions/{session.id}/webrtc"
            answer = await http.post(path, content=await peer.offer(), headers=headers)
            await peer.accept(answer.text)
            for colour in (RED, BLUE, RED, BLUE):
                video.colour = colour
                came = len(peer.colours)
                await peer.sees(colour, TOLERANCE)
                await until(lambda came=came: len(peer.colours) > came + 10)  # type: ignore[misc]
            assert min(road.counts.values()) > 0
        await peer.close()

    asyncio.run(scene())
    session.close()
    with pytest.raises(StopIteration):
        next(servers)
