"""A WebRTC peer for tests, in Python: sends pictures of a uniform colour and keeps those that come back.

Simultaneous flashes and beeps show whether sound and pictures stay in sync.
"""

from __future__ import annotations

import asyncio
import json
import time
from fractions import Fraction

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

WAIT_S = 15.0
BEEP_HZ, BEEP_S, BEEP_EVERY_S = 1000, 0.3, 1.0
_RATE_HZ, _PIECE = 48_000, 960


class FlatVideo(MediaStreamTrack):
    """30 pictures per second, filled with `colour`, which may be changed."""

    kind = "video"

    def __init__(self, colour: tuple[int, int, int], width: int = 64, height: int = 48) -> None:
        super().__init__()
        self.colour = colour
        self.size = width, height
        self._count = 0

    def colour_now(self) -> tuple[int, int, int]:
        return self.colour

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(1 / 30)
        if self.readyState != "live":
            raise MediaStreamError
        width, height = self.size
        image = np.full((height, width, 3), self.colour_now(), np.uint8)
        frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        self._count += 1
        frame.pts, frame.time_base = self._count * 3000, Fraction(1, 90000)
        return frame


class Flashes(FlatVideo):
    """Black, but white for BEEP_S every BEEP_EVERY_S, counted from `began_s` (monotonic)."""

    def __init__(self, began_s: float) -> None:
        super().__init__((0, 0, 0))
        self._began_s = began_s

    def colour_now(self) -> tuple[int, int, int]:
        lit = (time.monotonic() - self._began_s) % BEEP_EVERY_S < BEEP_S
        return (255, 255, 255) if lit else (0, 0, 0)


class Beeps(MediaStreamTrack):
    """A microphone that hears a tone with each flash. Returns 20 ms of sound once they have passed."""

    kind = "audio"

    def __init__(self, began_s: float, channels: int = 2) -> None:
        super().__init__()
        self._began_s = began_s
        self._layout = "stereo" if channels == 2 else "mono"
        self._position = round((time.monotonic() - began_s) * _RATE_HZ)

    async def recv(self) -> AudioFrame:
        time_s = (self._position + np.arange(_PIECE)) / _RATE_HZ
        await asyncio.sleep(max(0.0, self._began_s + float(time_s[-1]) - time.monotonic()))
        if self.readyState != "live":
            raise MediaStreamError
        wave = np.sin(2 * np.pi * BEEP_HZ * time_s) * 10_000 * (time_s % BEEP_EVERY_S < BEEP_S)
        samples = np.repeat(wave.astype(np.int16), 2 if self._layout == "stereo" else 1)[None]
        frame = AudioFrame.from_ndarray(samples, format="s16", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = _RATE_HZ, self._position, Fraction(1, _RATE_HZ)
        self._position += _PIECE
        return frame


class TestPeer:
    """gives, sound: tracks to send. takes: whether to ask for pictures. control: whether to open the data channel.

    codec: the only one that it speaks; None for all of aiortc's.
    """

    __test__ = False

    def __init__(
        self,
        *,
        gives: MediaStreamTrack | None = None,
        sound: MediaStreamTrack | None = None,
        takes: bool = False,
        control: bool = False,
        codec: str | None = None,
    ) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.colours: list[tuple[int, ...]] = []
        self.sizes: set[tuple[int, int]] = set()
        self.pts: list[int] = []
        self.messages: list[dict[str, object]] = []
        self.tasks: list[asyncio.Future[None]] = []
        direction = {(True, True): "sendrecv", (True, False): "sendonly", (False, True): "recvonly"}
        if gives is not None or takes:
            transceiver = self.connection.addTransceiver(
                gives or "video", direction=direction[gives is not None, takes]
            )
            known = RTCRtpReceiver.getCapabilities("video")
            assert known is not None
            transceiver.setCodecPreferences(
                [item for item in known.codecs if codec in (None, item.mimeType.removeprefix("video/"))]
            )
        if sound is not None:
            self.connection.addTransceiver(sound, direction="sendonly")
        self.connection.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self._watch(track))))
        self.channel = self.connection.createDataChannel("control") if control else None
        if self.channel is not None:
            self.channel.on("message", lambda text: self.messages.append(json.loads(text)))

    async def offer(self) -> str:
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return str(self.connection.localDescription.sdp)

    async def accept(self, answer: str) -> None:
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, VideoFrame)
            self.sizes.add((frame.width, frame.height))
            self.colours.append(tuple(int(v) for v in frame.to_ndarray(format="rgb24")[20, 30]))
            assert frame.pts is not None
            self.pts.append(frame.pts)

    async def sees(self, colour: tuple[int, int, int], within: int) -> None:
        """Wait until the newest picture has that colour. within: tolerance of each channel, for codec loss."""

        def near() -> bool:
            pairs = zip(self.colours[-1], colour, strict=True) if self.colours else ()
            return max((abs(a - b) for a, b in pairs), default=256) <= within

        await until(near)

    async def hears(self, kind: str) -> dict[str, object]:
        """Wait for a message of that type; it is removed and returned."""
        await until(lambda: any(message["type"] == kind for message in self.messages))
        found = next(message for message in self.messages if message["type"] == kind)
        self.messages.remove(found)
        return found

    def say(self, **message: object) -> None:
        assert self.channel is not None
        self.channel.send(json.dumps(message))

    async def close(self) -> None:
        await self.connection.close()
        await asyncio.gather(*self.tasks)


async def until(true: object, wait_s: float = WAIT_S) -> None:
    """Wait for a condition."""
    assert callable(true)
    deadline_s = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(0.01)
