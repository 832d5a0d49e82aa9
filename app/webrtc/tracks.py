"""The pictures between a WebRTC peer and a session: newest wins in both directions, nothing queues.

Pictures are converted by OpenCV in an executor, to and from BT.601 in studio swing, as libwebrtc sends them.
Depends on aiortc's tracks and on sessions, not on signalling.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from fractions import Fraction
from typing import TYPE_CHECKING

import cv2
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.video.frame import VideoFrame

from app.worker.stage_times import Stage
from pipelines.core.types import Picture

if TYPE_CHECKING:
    from app.session.session import Session

CLOCK_HZ = 90_000  # RFC 3551, section 5: the clock of every video payload
_TIME_BASE = Fraction(1, CLOCK_HZ)
_MS_PER_NS = 1e-6
_BT601, _STUDIO = (2, 5, 6), (0, 1)  # ITU-T H.273, tables 4 and 6: with what is not said


def rgb_of(frame: VideoFrame) -> Picture:
    """A decoded frame as [H, W, 3] uint8 RGB, by the colours that it says it has, or BT.601 in studio swing."""
    even = frame.width % 2 == 0 and frame.height % 2 == 0
    usual = frame.colorspace in _BT601 and frame.color_range in _STUDIO
    if frame.format.name == "yuv420p" and even and usual:
        return np.asarray(cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420), dtype=np.uint8)
    return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


def yuv_of(image: Picture) -> VideoFrame:
    """[H, W, 3] uint8 RGB as a YUV 4:2:0 frame; the last row or column of an odd size is left out."""
    height, width = image.shape[0] & ~1, image.shape[1] & ~1
    planes = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2YUV_I420)
    return VideoFrame.from_ndarray(planes, format="yuv420p")


class PeerVideo:
    """Takes a peer's pictures and submits the newest to the session; those that came meanwhile count as dropped."""

    def __init__(self, track: MediaStreamTrack, session: Session, codecs: Executor) -> None:
        self.received = 0
        self.replaced = 0  # came while another was being converted, and a newer one came too
        self._track = track
        self._session = session
        self._codecs = codecs
        self._newest: tuple[VideoFrame, int] | None = None
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Until the track ends."""
        async with asyncio.TaskGroup() as group:
            submitting = group.create_task(self._submit_newest())
            try:
                await self._receive()
            finally:
                submitting.cancel()

    async def _receive(self) -> None:
        """Empties aiortc's own queue as fast as it fills: a slot of one frame is all that waits."""
        while True:
            try:
                frame = await self._track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, VideoFrame)
            self.received += 1
            if self._newest is not None:
                self.replaced += 1
                self._session.drop_input(self._newest[1])
            self._newest = frame, time.monotonic_ns()
            self._arrived.set()

    async def _submit_newest(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            assert self._newest is not None
            (frame, captured_ns), self._newest = self._newest, None
            await loop.run_in_executor(self._codecs, self._submit, frame, captured_ns)

    def _submit(self, frame: VideoFrame, captured_ns: int) -> None:
        began_ns = time.monotonic_ns()
        image = rgb_of(frame)
        self._session.stages.add(Stage.UNPACK, (time.monotonic_ns() - began_ns) * _MS_PER_NS)
        self._session.submit(image, captured_ns)


class SessionVideo(MediaStreamTrack):
    """A session's output as a track: each `recv` is the newest frame that this track has not given yet.

    Its pts is the time since the first frame, in 1/90000 s, and always rises. repeat_s: the newest frame is given again
    when no other has come for so long, so that who joins a still picture sees it.
    """

    kind = "video"

    def __init__(self, session: Session, codecs: Executor, *, repeat_s: float) -> None:
        super().__init__()
        self.sent = 0
        self.missed = 0
        self._session = session
        self._feed = session.feed()
        self._codecs = codecs
        self._repeat_s = repeat_s
        self._began_ns: int | None = None
        self._pts = -1

    async def recv(self) -> VideoFrame:
        """The next frame. Raises MediaStreamError when the track was stopped or the session is over."""
        image, captured_ns = await self._next()
        began_ns = time.monotonic_ns()
        frame = await asyncio.get_running_loop().run_in_executor(self._codecs, yuv_of, image)
        now_ns = time.monotonic_ns()
        self._session.stages.add(Stage.PACK, (now_ns - began_ns) * _MS_PER_NS)
        if captured_ns is not None:
            self._session.stages.add(Stage.TOTAL, (now_ns - captured_ns) * _MS_PER_NS)
        if self._began_ns is None:
            self._began_ns = now_ns
        self._pts = max(self._pts + 1, (now_ns - self._began_ns) * CLOCK_HZ // 1_000_000_000)
        frame.pts, frame.time_base = self._pts, _TIME_BASE
        self.sent += 1
        return frame

    def stop(self) -> None:
        """End the track. Stopping twice is fine."""
        self._feed.close()
        super().stop()

    async def _next(self) -> tuple[Picture, int | None]:
        """The picture to send next, and when its input was captured; None for one that is repeated."""
        while self.readyState == "live":
            delivery = await self._feed.next(self._repeat_s)
            if delivery is not None:
                self.missed += delivery.missed
                return delivery.frame.image, delivery.frame.captured_ns
            if self._session.over:
                self.stop()
                break
            newest = self._session.proxy.newest()
            if newest is not None:
                return newest[1].image, None
        raise MediaStreamError
