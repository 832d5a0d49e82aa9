"""Measures a Python peer that streams by WebRTC through the real server.

It sends pictures that show its own clock as a bar code, and reads it from the returned pictures: the latency includes
both codecs both ways, transport and worker. Stock aiortc in a separate process; its receiver delivers frames one frame
period late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
import urllib.request
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.video.frame import VideoFrame

from app.webrtc.tracks import yuv_of
from bench.live_page import BITS, median, percentile, serving

CODECS = ("VP8", "H264")
_PEER_FIGURES = ("fps", "p50_ms", "p95_ms")
_CLOCK_HZ = 90_000
_TICK = Fraction(1, _CLOCK_HZ)
_SPAN_MS = 1 << BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRun:
    """One Python peer's measurement. codec: "VP8" or "H264". side_px: of its square pictures."""

    url: str
    codec: str
    side_px: int = 512
    rate: int = 30
    warm_up_s: float = 3.0
    seconds: float = 10.0


class ClockVideo(MediaStreamTrack):
    """Pictures that show time.monotonic() in ms as a bar code, at a steady rate on a moving colour."""

    kind = "video"

    def __init__(self, side_px: int, rate: int) -> None:
        super().__init__()
        self._side_px, self._rate = side_px, rate
        self._began_s = time.monotonic()
        self._count = 0

    async def recv(self) -> VideoFrame:
        """The next picture, when it is due; late ones are skipped."""
        late = int((time.monotonic() - self._began_s) * self._rate)
        self._count = max(self._count + 1, late)
        await asyncio.sleep(max(0.0, self._began_s + self._count / self._rate - time.monotonic()))
        if self.readyState != "live":
            raise MediaStreamError
        frame = yuv_of(clock_picture(self._side_px, self._count, time.monotonic() * 1000))
        frame.pts, frame.time_base = self._count * _CLOCK_HZ // self._rate, _TICK
        return frame


def clock_picture(side_px: int, turn: int, now_ms: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[side_px, side_px, 3] uint8 RGB."""
    code = int(now_ms) % _SPAN_MS
    hue = np.full((1, 1, 3), (turn % 180, 150, 160), np.uint8)
    image = np.empty((side_px, side_px, 3), np.uint8)
    image[:] = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]
    edges = [bit * side_px // BITS for bit in range(BITS + 1)]
    for bit, (left, right) in enumerate(pairwise(edges)):
        image[side_px // 4 : 3 * side_px // 4, left:right] = 255 if code >> bit & 1 else 0
    return image


def read_delay_ms(frame: VideoFrame, now_ms: float) -> float:
    """The age of the clock in a picture."""
    row = frame.to_ndarray()[frame.height // 2, : frame.width]  # of the luma plane
    places = [(2 * bit + 1) * frame.width // (2 * BITS) for bit in range(BITS)]
    code = sum(1 << bit for bit, place in enumerate(places) if row[place] > 127)
    return (now_ms - code) % _SPAN_MS


@dataclass(slots=True, kw_only=True)
class _Samples:
    at_ms: list[float] = field(default_factory=list)
    delay_ms: list[float] = field(default_factory=list)


async def _stream(run: PeerRun) -> dict[str, Any]:
    opened = _ask(f"{run.url}v1/sessions", b"{}", "application/json", "")
    session = json.loads(opened)
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    transceiver = connection.addTransceiver(ClockVideo(run.side_px, run.rate), direction="sendrecv")
    available = RTCRtpReceiver.getCapabilities("video")
    assert available is not None
    transceiver.setCodecPreferences([codec for codec in available.codecs if codec.mimeType == f"video/{run.codec}"])
    await connection.setLocalDescription(await connection.createOffer())
    offer = connection.localDescription.sdp.encode()
    answer = _ask(f"{run.url}v1/sessions/{session['id']}/webrtc", offer, "application/sdp", session["token"])
    await connection.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
    samples = _Samples()
    ends_s = time.monotonic() + run.warm_up_s + run.seconds
    while time.monotonic() < ends_s:
        frame = await transceiver.receiver.track.recv()
        assert isinstance(frame, VideoFrame)
        now_ms = time.monotonic() * 1000
        if now_ms > (ends_s - run.seconds) * 1000:
            samples.at_ms.append(now_ms)
            samples.delay_ms.append(read_delay_ms(frame, now_ms))
    await connection.close()
    _ask(f"{run.url}v1/sessions/{session['id']}", b"", "application/json", session["token"], method="DELETE")
    return summary(samples.at_ms, samples.delay_ms)


def summary(at_ms: list[float], delay_ms: list[float]) -> dict[str, Any]:
    """Frames a second, and the plausible delays."""
    read = [delay for delay in delay_ms if -5 < delay < 10_000]
    return {
        "frames": len(at_ms),
        "fps": round((len(at_ms) - 1) / ((at_ms[-1] - at_ms[0]) / 1000), 2),
        "p50_ms": round(percentile(read, 0.5), 1) if read else None,
        "p95_ms": round(percentile(read, 0.95), 1) if read else None,
        "unread": len(at_ms) - len(read),
    }


def _ask(url: str, body: bytes, kind: str, token: str, method: str = "POST") -> str:
    headers = {"Content-Type": kind, **({"Authorization": f"Bearer {token}"} if token else {})}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=20) as answer:
        return str(answer.read().decode())


def _in_process(run: PeerRun, result: Connection) -> None:
    cv2.setNumThreads(1)
    result.send(asyncio.run(_stream(run)))


def python_run(run: PeerRun) -> dict[str, Any]:
    """One measurement in a fresh process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_in_process, args=(run, theirs))
    process.start()
    theirs.close()
    try:
        result: dict[str, Any] = ours.recv()
    finally:
        process.join()
    return result


def python_row(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of several runs of a Python peer, for each codec."""
    row: dict[str, Any] = {"transport": "webrtc", "peer": "python", "size": options.size}
    with serving("identity", options.size) as url:
        for codec in CODECS:
            run = PeerRun(
                url=url,
                codec=codec,
                side_px=options.camera_px,
                rate=options.rate,
                warm_up_s=options.warm_up_s,
                seconds=options.seconds,
            )
            runs = [python_run(run) for _ in range(options.runs)]
            medians = {name: median([run[name] for run in runs]) for name in _PEER_FIGURES}
            row[codec] = {**medians, "runs": runs}
    return row
