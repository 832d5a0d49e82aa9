"""A WebRTC peer's sound: the source that is used, queueing, times; and recorded over the API with the pictures.

Recordings come from a real server and worker with real peers, and are decoded again.
"""

from __future__ import annotations

import asyncio
import io
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import httpx
import numpy as np
import pytest
from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket

from app.session.session import Session
from app.session.sound import SoundHub
from app.webrtc.sdp import ROLES, plan_offer
from app.webrtc.sound import ArrivalClock, PacketBuffer, PeerSound, SoundQueue
from tests.fakes.api_server import ApiServer, api_server
from tests.fakes.stream_server import wait_until, worker_client
from tests.fakes.webrtc_peers import BEEP_EVERY_S, BEEP_HZ, BEEP_S, Beeps, Flashes, FlatVideo, TestPeer, until

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48000, channels=2, payloadType=96)
RATE_HZ = 48_000
PACKET = 960


# ---- before the decoder ----


def packet(number: int, payload: bytes = b"sound") -> RtpPacket:
    return RtpPacket(sequence_number=number & 0xFFFF, timestamp=number * PACKET, payload=payload)


def test_each_packet_is_handed_on_at_once_and_stale_and_empty_ones_are_not() -> None:
    buffer = PacketBuffer()
    numbers = [65534, 65535, 65535, 65536, 65534, 65539, 65538, 65540]  # twice; late; a hole; the count goes over
    handed = [buffer.add(packet(number))[1] for number in numbers]
    assert [frame.timestamp // PACKET if frame else None for frame in handed] == [
        *(65534, 65535, None, 65536, None, 65539, None, 65540)
    ]
    assert buffer.add(packet(65541, b"")) == (False, None)
    restarted = buffer.add(packet(65541 - 30_000))[1]  # a sender that counts anew
    assert restarted is not None


def test_the_clock_follows_the_least_delayed_packets_and_a_delay_that_stays() -> None:
    clock = ArrivalClock()
    rng = np.random.default_rng(0)
    jitter = rng.exponential(0.008 * RATE_HZ, 3000)
    jitter[::7] = 0
    times = [clock.map(n * PACKET, 5_000_000 + n * PACKET + round(jitter[n])) for n in range(3000)]
    errors_ms = (np.array(times) - 5_000_000 - np.arange(3000) * PACKET)[10:] / 48
    assert errors_ms.min() >= 0
    assert errors_ms.max() < 2
    longer = [clock.map(n * PACKET, 5_000_000 + n * PACKET + 100 * 48) for n in range(3000, 4500)]
    assert (longer[-1] - 5_000_000 - 4499 * PACKET) / 48 == pytest.approx(100, abs=2)


def test_the_clock_begins_anew_with_its_sender_and_never_leaves_the_arrival_far() -> None:
    clock = ArrivalClock()
    rng = np.random.default_rng(1)
    for n in range(200):
        arrived = 10_000_000 + n * PACKET
        at = clock.map(int(rng.integers(0, 2**32)), arrived)  # no sender that is sane
        assert arrived - RATE_HZ <= at <= arrived


def coded(number: int) -> tuple[RTCRtpCodecParameters, JitterFrame]:
    return OPUS, JitterFrame(data=b"\xfc\xff\xfe", timestamp=number * PACKET)


def test_packets_that_nobody_wants_are_not_decoded_and_those_that_wait_are_bounded() -> None:
    wanted = False
    waiting = SoundQueue(lambda: wanted)
    for number in range(100):
        waiting.put(coded(number))
    assert (waiting.qsize(), waiting.dropped) == (0, 100)
    wanted = True
    for number in range(100, 200):
        waiting.put(coded(number))
    assert (waiting.qsize(), waiting.dropped) == (50, 150)
    waiting.put(None)  # the end goes before all that waits
    assert waiting.get_nowait() is None


def test_the_decoder_hands_the_time_of_arrival_on() -> None:
    waiting = SoundQueue(lambda: True)
    before = time.monotonic_ns()
    waiting.put(coded(7))
    item: Any = waiting.get_nowait()
    (sound,) = OpusDecoder().decode(item[1])
    assert sound.pts is not None
    assert before * 48 // 1_000_000 - 1 <= sound.pts <= time.monotonic_ns() * 48 // 1_000_000


class Decoded:
    """A receiver whose track yields frames of 20 ms with these pts, in 1/48000 s."""

    def __init__(self, pts: list[int]) -> None:
        self._RTCRtpReceiver__jitter_buffer = JitterBuffer(capacity=16, prefetch=4)
        self._RTCRtpReceiver__decoder_queue: queue.Queue[object] = queue.Queue()
        self._pts = iter(pts)
        self.track = self

    async def recv(self) -> av.AudioFrame:
        pts = next(self._pts, None)
        if pts is None:
            raise MediaStreamError
        frame = av.AudioFrame.from_ndarray(np.full((1, 2 * PACKET), 1000, np.int16), format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, pts, Fraction(1, RATE_HZ)
        return frame


def test_lost_packets_become_silence_so_that_what_follows_is_not_early() -> None:
    second = RATE_HZ
    arrivals = [0, PACKET, 2 * PACKET + 50, 5 * PACKET + 50, 6 * PACKET - 900, second]  # two lost; jitter; a pause
    hub, heard = SoundHub(), list[tuple[bool, int, int]]()
    hub.listen(lambda sound, at_ns: heard.append((bool(sound.to_ndarray().any()), sound.samples, at_ns)))
    asyncio.run(PeerSound(Decoded([second + at for at in arrivals]), hub).run())  # type: ignore[arg-type]
    times = [(sound, samples, round(at_ns * 48 / 1e6) - second + PACKET) for sound, samples, at_ns in heard]
    assert times == [
        (True, PACKET, 0),
        (True, PACKET, PACKET),
        (True, PACKET, 2 * PACKET + 50),
        (False, 2 * PACKET, 3 * PACKET + 50),
        (True, PACKET, 5 * PACKET + 50),
        (True, PACKET, 6 * PACKET - 900),
        (True, PACKET, second),
    ]
    assert not hub._sources


# ---- offers ----


def offer_of(**tracks: Any) -> str:
    async def made() -> str:
        peer = TestPeer(**tracks)
        text = await peer.offer()
        await peer.close()
        return text

    return asyncio.run(made())


def test_sound_is_taken_once_in_opus_and_only_from_who_gives_pictures() -> None:
    text = offer_of(gives=FlatVideo((0, 0, 0)), takes=True, sound=Beeps(0.0), control=True)

    def inputs(text: str, role: str) -> dict[str, tuple[bool, str]]:
        return {plan.kind: (plan.input, plan.direction) for plan in plan_offer(text, ROLES[role])}

    nothing = (False, "inactive")
    video, sound = (True, "recvonly"), (True, "recvonly")
    assert inputs(text, "whip") == {"video": video, "audio": sound, "application": nothing}
    assert inputs(text, "webrtc") == {"video": (True, "sendrecv"), "audio": sound, "application": nothing}
    assert inputs(text, "whep") == {"video": (False, "sendonly"), "audio": nothing, "application": nothing}
    for missing in (text.replace("opus/48000", "speex/48000"), text.replace("a=sendonly", "a=recvonly")):
        assert inputs(missing, "whip")["audio"] == nothing
    section = text[text.index("m=audio") : text.index("m=application")]
    twice = plan_offer(text.replace(section, section * 2), ROLES["whip"])
    assert [plan.input for plan in twice if plan.kind == "audio"] == [True, False]


# ---- the way into a recording ----


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with worker_client() as worker, api_server(worker, tmp_path_factory.mktemp("data")) as made:
        yield made


@pytest.fixture
def session(server: ApiServer) -> Iterator[Session]:
    session = server.table.open(prompt_only=False)
    wait_until(lambda: session.proxy.info is not None)
    yield session
    session.close()


@dataclass(frozen=True, kw_only=True)
class Take:
    """A decoded recording. sound: left channel, [N], -1 to 1; None without a track. times_s: of pictures."""

    last: dict[str, Any]
    codecs: list[str]
    sound: np.ndarray | None
    times_s: np.ndarray
    lit: np.ndarray

    @property
    def beeps(self) -> list[tuple[float, float]]:
        """Return when each beep begins and ends, in seconds: 5 ms windows louder than a tenth."""
        assert self.sound is not None
        window = RATE_HZ // 200
        loud = np.abs(self.sound[: len(self.sound) // window * window]).reshape(-1, window).max(axis=1) > 0.1
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(int)))
        return [(float(begin) / 200, float(end) / 200) for begin, end in edges.reshape(-1, 2)]

    @property
    def flashes(self) -> list[tuple[float, float]]:
        """Return the last dark and the first lit picture's time of each flash, in seconds: it began in between."""
        begins = np.flatnonzero(self.lit[1:] & ~self.lit[:-1])
        return [(float(self.times_s[at]), float(self.times_s[at + 1])) for at in begins]


def decoded(last: dict[str, Any], file: bytes) -> Take:
    with av.open(io.BytesIO(file)) as container:
        codecs = [stream.codec_context.name for stream in container.streams]
        pictures = list(container.decode(video=0))
    sound = None
    if "aac" in codecs:
        with av.open(io.BytesIO(file)) as container:
            first, *others = container.decode(audio=0)
            assert first.pts == 0
            sound = np.concatenate([frame.to_ndarray()[0] for frame in (first, *others)])
    return Take(
        last=last,
        codecs=codecs,
        sound=sound,
        times_s=np.array([float(frame.pts * frame.time_base) for frame in pictures]),
        lit=np.array([frame.to_ndarray(format="gray").mean() > 128 for frame in pictures]),
    )


def record(server: ApiServer, session: Session, peer_of: Any, seconds: float, **wanted: object) -> Take:
    """Record a peer that sends by WHIP for some seconds, and decode the file."""
    token = {"Authorization": f"Bearer {session.token}"}
    path = f"/v1/sessions/{session.id}"

    async def scene() -> Take:
        peer = peer_of()
        async with httpx.AsyncClient(base_url=server.url, timeout=20, headers=token) as http:
            headers = {"Content-Type": "application/sdp"}
            answer = await http.post(f"{path}/whip", content=await peer.offer(), headers=headers)
            assert answer.status_code == 201, answer.text
            await peer.accept(answer.text)
            made = (await http.post(f"{path}/outputs", json={"kind": "recording", **wanted})).json()
            await until(lambda: session.proxy.count > 3)
            await asyncio.sleep(seconds)
            running = (await http.get(f"{path}/outputs")).json()["outputs"][0]
            assert running["phase"] == "running"
            last = (await http.delete(f"{path}/outputs/{made['id']}")).json()
            last["running"] = running["text"]
            file = await http.get(last["file_url"])
            assert file.status_code == 200
            await peer.close()
        await until(lambda: session.read().connections == 0)
        return decoded(last, file.content)

    return asyncio.run(scene())


@pytest.mark.alone
def test_a_recording_has_the_sound_of_its_source_in_time_with_the_pictures(server: ApiServer, session: Session) -> None:
    began_s = time.monotonic()
    take = record(
        server, session, lambda: TestPeer(gives=Flashes(began_s), sound=Beeps(began_s)), seconds=5.0, sound=True
    )
    assert sorted(take.codecs) == ["aac", "h264"]
    assert "sound" not in take.last["text"] + take.last["running"]
    assert take.sound is not None
    assert len(take.sound) / RATE_HZ == pytest.approx(take.times_s[-1], abs=0.25)
    whole = [beep for beep in take.beeps if beep[0] > 0.1 and beep[1] < len(take.sound) / RATE_HZ - 0.1]
    assert len(whole) >= 3
    for begin_s, end_s in whole:
        assert end_s - begin_s == pytest.approx(BEEP_S, abs=0.04)
        piece = take.sound[round((begin_s + 0.05) * RATE_HZ) : round((begin_s + 0.25) * RATE_HZ)]
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 1 << 16))
        assert np.argmax(spectrum) * RATE_HZ / (1 << 16) == pytest.approx(BEEP_HZ, rel=0.005)
    assert np.diff([begin_s for begin_s, _ in whole]) == pytest.approx(BEEP_EVERY_S, abs=0.04)
    heard = [flash for flash in take.flashes if whole[0][0] - 0.5 < flash[1] < whole[-1][0] + 0.5]
    assert len(heard) >= 2
    for dark_s, lit_s in heard:
        assert any(dark_s - 0.07 < begin_s < lit_s + 0.1 for begin_s, _ in whole), (whole, heard)


def test_without_being_asked_no_sound_is_recorded_or_decoded(
    server: ApiServer, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes: list[JitterFrame] = []
    monkeypatch.setattr(OpusDecoder, "decode", lambda self, frame: decodes.append(frame) or [])
    began_s = time.monotonic()
    take = record(server, session, lambda: TestPeer(gives=Flashes(began_s), sound=Beeps(began_s)), seconds=1.0)
    assert take.codecs == ["h264"]
    assert "sound" not in take.last["text"] + take.last["running"]
    assert decodes == []


@pytest.mark.parametrize("sound", [None, "unanswered"])
def test_a_source_without_sound_is_recorded_without_and_said_so(
    server: ApiServer, session: Session, sound: str | None
) -> None:
    class Mute(Beeps):
        """A track that never yields a frame."""

        async def recv(self) -> Any:
            await asyncio.Event().wait()

    def peer() -> TestPeer:
        track: MediaStreamTrack | None = Mute(0.0) if sound else None
        return TestPeer(gives=FlatVideo((200, 40, 40)), sound=track)

    take = record(server, session, peer, seconds=0.6, sound=True)
    assert take.codecs == ["h264"]
    assert take.last["running"].endswith("; no sound has arrived yet")
    assert take.last["phase"] == "stopped"
    assert take.last["text"].endswith("; no sound arrived")
    assert len(take.times_s) == take.last["done"] > 3


def test_a_peer_that_leaves_takes_its_source_along(server: ApiServer, session: Session) -> None:
    forget = session.sound.listen(lambda sound, at_ns: None)
    began_s = time.monotonic()
    record(server, session, lambda: TestPeer(gives=Flashes(began_s), sound=Beeps(began_s)), seconds=0.3, sound=True)
    wait_until(lambda: not session.sound._sources)
    assert len(session.sound._listeners) == 1  # the recording's has gone with it
    forget()
