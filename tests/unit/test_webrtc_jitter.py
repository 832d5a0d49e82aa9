"""The jitter buffer that releases at the marker bit against aiortc's own: same frames, never later, also when packets
are lost, late, doubled or empty; and the bounded queue before the decoder."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket

from app.webrtc.jitter import AiortcError, DecodeQueue, MarkerJitterBuffer, bound_decoder, release_on_marker
from pipelines.core.errors import InputError

FIRST_SEQUENCE = 65500  # so that numbers wrap
FRAME_TICKS = 3000


def packet(sequence: int, timestamp: int, data: bytes, *, marker: bool) -> RtpPacket:
    made = RtpPacket(sequence_number=sequence & 0xFFFF, timestamp=timestamp, marker=int(marker), payload=data)
    made._data = data  # type: ignore[attr-defined]  # where aiortc's receiver keeps it
    return made


def film(frames: int, rng: random.Random, *, empty: bool = False) -> tuple[list[RtpPacket], list[bytes]]:
    """Return the packets of frames of 1 to 6 packets, and each frame's data. empty: with empty packets in between."""
    packets: list[RtpPacket] = []
    whole: list[bytes] = []
    for number in range(frames):
        parts = [bytes([number % 256, part]) for part in range(rng.randint(1, 6))]
        whole.append(b"".join(parts))
        for part, data in enumerate(parts):
            sequence = FIRST_SEQUENCE + len(packets)
            packets.append(packet(sequence, number * FRAME_TICKS, data, marker=part == len(parts) - 1))
        for _ in range(rng.randint(0, 2) if empty else 0):  # a browser's probes: the last frame's time, no marker
            packets.append(packet(FIRST_SEQUENCE + len(packets), number * FRAME_TICKS, b"", marker=False))
    return packets, whole


def receive(buffer: JitterBuffer, packets: Sequence[RtpPacket]) -> list[tuple[int, int, bytes]]:
    """Return for every released frame: after how many packets, its time, its data."""
    frames = []
    for count, item in enumerate(packets):
        _, frame = buffer.add(item)
        if frame is not None:
            frames.append((count, frame.timestamp, frame.data))
    return frames


def both(packets: Sequence[RtpPacket], capacity: int = 512) -> tuple[list[tuple[int, int, bytes]], ...]:
    stock = receive(JitterBuffer(capacity=capacity, is_video=True), packets)
    return stock, receive(MarkerJitterBuffer(capacity=capacity, is_video=True), packets)


def never_later(stock: list[tuple[int, int, bytes]], marker: list[tuple[int, int, bytes]]) -> None:
    """Check that every frame of the stock buffer is released here too, in the same order and not later."""
    came = {timestamp: count for count, timestamp, _ in marker}
    assert [(t, d) for _, t, d in marker][: len(stock)] == [(t, d) for _, t, d in stock]
    assert all(came[timestamp] <= count for count, timestamp, _ in stock)


@pytest.mark.parametrize("empty", [False, True])
def test_in_order_every_frame_comes_with_its_last_packet(empty: bool) -> None:
    packets, whole = film(60, random.Random(1), empty=empty)
    stock, marker = both(packets)
    assert [data for _, _, data in marker] == whole
    assert [packets[count].marker for count, _, _ in marker] == [1] * 60
    assert len(stock) == 59  # the last frame waits for ever
    assert all(late - soon >= 1 for (late, _, _), (soon, _, _) in zip(stock, marker, strict=False))
    never_later(stock, marker)


@pytest.mark.parametrize("seed", range(12))
def test_late_lost_and_doubled_packets_that_come_again(seed: int) -> None:
    rng = random.Random(seed)
    packets, whole = film(300, rng, empty=seed % 2 == 1)
    keys = {place: float(place) for place in range(len(packets))}
    for place in range(1, len(packets) // 2):  # then calm: what has been held back comes out
        if rng.random() < 0.1:  # out of order, or lost and sent again a while later
            keys[place] += rng.choice((1.5, 3.5, 20.5, 60.5))
    arrived = [packets[place] for place in sorted(keys, key=keys.__getitem__)]
    for _ in range(10):
        place = rng.randrange(len(arrived) // 2)
        arrived.insert(place + rng.randint(1, 50), arrived[place])
    stock, marker = both(arrived)
    assert [data for _, _, data in marker] == whole
    assert len(stock) == 299
    never_later(stock, marker)


@pytest.mark.parametrize("seed", range(12))
def test_packets_that_never_come_cost_whole_frames(seed: int) -> None:
    rng = random.Random(seed)
    packets, whole = film(400, rng)
    lost = {place for place in range(1, len(packets)) if rng.random() < 0.01}
    arrived = [item for place, item in enumerate(packets) if place not in lost]
    stock, marker = both(arrived, capacity=32)

    def broken(frames: list[tuple[int, int, bytes]]) -> set[int]:
        return {timestamp for _, timestamp, data in frames if data != whole[timestamp // FRAME_TICKS]}

    assert broken(marker) <= broken(stock)  # what stock hands on in pieces may be in pieces here, no more
    assert len(marker) >= len(stock) > 100
    times = [timestamp for _, timestamp, _ in marker]
    assert times == sorted(set(times))


def test_a_sender_without_markers_is_received_as_by_stock() -> None:
    packets, _ = film(50, random.Random(3))
    for item in packets:
        item.marker = 0
    stock, marker = both(packets)
    assert marker == stock


def coded(codec: str, data: bytes) -> tuple[RTCRtpCodecParameters, JitterFrame]:
    return RTCRtpCodecParameters(f"video/{codec}", 90000, payloadType=96), JitterFrame(data=data, timestamp=0)


def refused_by(waiting_px: int) -> tuple[DecodeQueue, threading.Event, list[InputError]]:
    damaged, refused = threading.Event(), list[InputError]()
    return DecodeQueue(2, damaged, picture_px=waiting_px, refuse=refused.append), damaged, refused


def test_the_queue_before_the_decoder_is_bounded_and_asks_for_a_key_frame() -> None:
    waiting, damaged, refused = refused_by(64)
    frames = [coded("VP8", bytes([1, number])) for number in range(3)]
    for frame in frames[:2]:
        waiting.put(frame)
    assert not damaged.is_set()
    waiting.put(frames[2])
    assert damaged.is_set()
    assert [waiting.get_nowait(), waiting.dropped] == [frames[0], 1]
    waiting.put(None)  # the end is told at once: what waits is left out
    assert waiting.get_nowait() is None
    assert waiting.empty()
    assert not refused


def test_a_picture_that_is_too_large_never_reaches_the_decoder() -> None:
    key = b"\x10\x02\x00\x9d\x01\x2a" + bytes([0, 0x04, 0, 0x03])  # 1024 x 768
    waiting, damaged, refused = refused_by(1024 * 768)
    waiting.put(coded("VP8", key))
    assert waiting.qsize() == 1
    waiting, damaged, refused = refused_by(1024 * 768 - 1)
    waiting.put(coded("VP8", key))
    waiting.put(coded("VP8", b"\x01 and what builds on it"))
    assert (waiting.qsize(), waiting.dropped, damaged.is_set()) == (0, 2, False)
    expected = "A picture of 1024 x 768 px was sent over WebRTC. Send at most 786431 pixels."
    assert [str(error) for error in refused] == [expected]
    waiting, _, refused = refused_by(64)
    waiting.put(coded("VP8", b"\x10\x02\x00 no start code"))
    assert waiting.empty()
    assert "cannot be read" in str(refused[0])


def test_an_aiortc_that_is_built_differently_is_named() -> None:
    class Other:
        pass

    with pytest.raises(AiortcError, match="has no _RTCRtpReceiver__jitter_buffer"):
        release_on_marker(Other())  # type: ignore[arg-type]
    with pytest.raises(AiortcError, match="has no _RTCRtpReceiver__decoder_queue"):
        bound_decoder(Other(), 2, picture_px=64, refuse=print)  # type: ignore[arg-type]
    assert RTCRtpReceiver.__name__ == "RTCRtpReceiver"
