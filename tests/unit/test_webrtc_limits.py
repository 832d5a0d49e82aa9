"""What a WebRTC peer may send: pictures up to a size, checked before they are decoded; those that a newer one replaces
are counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.video.frame import VideoFrame

from app.api.context import ApiLimits
from app.session.session import Session
from app.webrtc.tracks import PeerVideo
from app.worker.handle import WorkerHandle
from app.worker.process import WorkerOptions
from app.worker.stage_times import StageTimes
from pipelines.files.loader_options import LoaderOptions
from tests.fakes.webrtc_peers import FlatVideo, TestPeer, until
from tests.fakes.webrtc_server import serve


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerHandle]:
    options = WorkerOptions(model="identity", engine=LoaderOptions(width=64, height=48))
    with WorkerHandle(options, max_sessions=1) as client:
        client.wait_ready(60)
        yield client


@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_picture_that_is_too_large_ends_the_peer_with_a_message(
    worker: WorkerHandle, tmp_path: Path, codec: str
) -> None:
    servers = serve(worker, tmp_path, None, ApiLimits(picture_px=64 * 48))
    server = next(servers)
    session = server.open()

    async def scene() -> None:
        peer = TestPeer(gives=FlatVideo((200, 40, 40), 80, 64), takes=True, control=True, codec=codec)
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
            headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {session.token}"}
            path = f"/sessions/{session.id}/webrtc"
            answer = await http.post(path, content=await peer.offer(), headers=headers)
            await peer.accept(answer.text)
            refused = await peer.hears("error")
            assert refused["code"] == "too_large"
            assert refused["message"] == "A picture of 80 x 64 px was sent over WebRTC."
            assert refused["remedy"] == "Send at most 3072 pixels."
            await until(lambda: peer.connection.connectionState == "closed")
        await peer.close()

    asyncio.run(scene())
    assert session.read().accounting.taken == 0
    assert not session.over
    with pytest.raises(StopIteration):
        next(servers)


class Burst(MediaStreamTrack):
    """Yields `count` pictures at once, then none."""

    kind = "video"

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(0)
        if not self._left:
            await asyncio.sleep(0.05)  # what waits is taken meanwhile
            raise MediaStreamError
        self._left -= 1
        return VideoFrame.from_ndarray(np.full((32, 48, 3), self._left, np.uint8), format="rgb24")


class CountingSession:
    """The part of a session that PeerVideo uses."""

    def __init__(self, release: threading.Event) -> None:
        self.stages = StageTimes()
        self.taken: list[int] = []
        self.dropped = 0
        self._release = release

    def submit(self, image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], captured_ns: int) -> None:
        assert self._release.wait(10)
        self.taken.append(int(image[0, 0, 0]))

    def drop_input(self, captured_ns: int) -> None:
        self.dropped += 1
        if self.dropped == 7:
            self._release.set()


def test_pictures_that_a_newer_one_replaces_count_as_dropped() -> None:
    session = CountingSession(threading.Event())

    async def scene() -> None:
        with ThreadPoolExecutor(1) as codecs:
            video = PeerVideo(Burst(9), cast(Session, session), codecs)
            await video.run()
            assert (video.received, video.replaced) == (9, 7)

    asyncio.run(scene())
    assert (session.taken, session.dropped) == ([8, 0], 7)
