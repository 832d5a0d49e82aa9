"""Two changes to how aiortc receives video, each for one receiver and never for all.

`bound_decoder`: what waits for the decoder is bounded (aiortc's queue is not). `release_on_marker`: a frame is handed
on at its last packet, which carries the marker bit (RFC 6184, section 5.1; RFC 7741, section 4.1); aiortc 1.16 waits
for the next frame's first packet, one frame period later. Knows aiortc's inside; no session.
"""

from __future__ import annotations

import queue
import threading
from typing import TypeVar

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add

from pipelines.errors import ZoetropeError

_T = TypeVar("_T")

_BUFFER = "_RTCRtpReceiver__jitter_buffer"
_QUEUE = "_RTCRtpReceiver__decoder_queue"
_ERROR = "_RTCRtpReceiver__decoder_error"


class AiortcError(ZoetropeError):
    """This version of aiortc is built differently inside."""


class MarkerJitterBuffer(JitterBuffer):
    """Hands a frame on as soon as all its packets are there.

    A frame is whole when its packets follow each other from the buffer's head to one with the marker bit. Out of order
    or lost packets: as stock, the head waits for what is missing, until the buffer is full. Packets without data at the
    head (a browser's probes for bandwidth) belong to no frame and are dropped, so that they neither hold a frame back
    nor become one.
    """

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        self._drop_empty()
        packets: list[RtpPacket] = []
        assert self._origin is not None
        for count in range(self.capacity):
            packet = self._packets[(self._origin + count) % self.capacity]
            if packet is None:
                return None
            if packets and packet.timestamp != packets[0].timestamp:
                break  # the last packet had no marker: the next frame's first one ends it, as stock
            packets.append(packet)
            if packet.marker:
                break
        else:
            return None
        self.remove(len(packets))
        return JitterFrame(data=b"".join(_data(packet) for packet in packets), timestamp=packets[0].timestamp)

    def _drop_empty(self) -> None:
        assert self._origin is not None
        for _ in range(self.capacity):
            packet = self._packets[self._origin % self.capacity]
            if packet is None or _data(packet):
                return
            self._packets[self._origin % self.capacity] = None
            self._origin = uint16_add(self._origin, 1)


def _data(packet: RtpPacket) -> bytes:
    """The payload without its codec's header; the receiver keeps it there."""
    data = packet._data  # type: ignore[attr-defined]
    assert isinstance(data, bytes)
    return data


class DecodeQueue(queue.Queue[object]):
    """Between the network and a decoder: at most `frames` wait, a newer one is dropped and a key frame asked for.

    Policy: dropping any frame makes those that follow wrong until the next key frame, so which one goes is the same to
    the picture; the oldest stay because the decoder can still use them.
    """

    def __init__(self, frames: int, damaged: threading.Event) -> None:
        super().__init__()
        self.dropped = 0
        self._frames = frames
        self._damaged = damaged

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Never waits. None, which ends the decoder, is always taken."""
        if item is not None and self.qsize() >= self._frames:
            self.dropped += 1
            self._damaged.set()  # aiortc answers the next packet with a picture loss indication
            return
        super().put(item, block, timeout)


def release_on_marker(receiver: RTCRtpReceiver) -> None:
    """For this receiver, before it has started. Raises AiortcError."""
    stock = _inside(receiver, _BUFFER, JitterBuffer)
    vars(receiver)[_BUFFER] = MarkerJitterBuffer(capacity=stock.capacity, is_video=True)


def bound_decoder(receiver: RTCRtpReceiver, frames: int) -> None:
    """For this receiver, before it has started. Raises AiortcError."""
    _inside(receiver, _QUEUE, queue.Queue)
    damaged = _inside(receiver, _ERROR, threading.Event)
    vars(receiver)[_QUEUE] = DecodeQueue(frames, damaged)


def _inside(receiver: RTCRtpReceiver, name: str, kind: type[_T]) -> _T:
    found = vars(receiver).get(name)
    if not isinstance(found, kind):
        raise AiortcError(f"This aiortc has no {name}.", "Install aiortc 1.16, or turn the option off.")
    return found
