"""Two changes to how aiortc receives video, each for one receiver and never for all.

`bound_decoder`: what waits for the decoder is bounded (aiortc's queue is not), and pictures that are too large never
reach it. `release_on_marker`: a frame is handed on at its last packet, which carries the marker bit (RFC 6184, section
5.1; RFC 7741, section 4.1); aiortc 1.16 waits for the next frame's first packet, one frame period later. Knows aiortc's
inside; no session.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add

from pipelines.core.errors import InputError, TooLargeError, ZoetropeError

from .sizes import PictureSizeError, coded_size_px

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
    the picture; the oldest stay because the decoder can still use them. A picture of more than `picture_px` pixels is
    not taken, nor anything after it: `refuse` is called, once, with the reason.
    """

    def __init__(
        self, frames: int, damaged: threading.Event, *, picture_px: int, refuse: Callable[[InputError], None]
    ) -> None:
        super().__init__()
        self.dropped = 0
        self._frames = frames
        self._damaged = damaged
        self._picture_px = picture_px
        self._refuse = refuse
        self._refused = False

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Never waits. None ends the decoder: it is always taken, and what waits is left out."""
        if item is None:
            while not self.empty():  # the event loop waits for the decoder's end
                self.get_nowait()
            super().put(None)
        elif self._refused or not self._fits(item):
            self.dropped += 1
        elif self.qsize() >= self._frames:
            self.dropped += 1
            self._damaged.set()  # aiortc answers the next packet with a picture loss indication
        else:
            super().put(item)

    def _fits(self, item: object) -> bool:
        assert isinstance(item, tuple)
        codec, frame = item
        assert isinstance(codec, RTCRtpCodecParameters)
        try:
            size = coded_size_px(codec.name, frame.data)
        except PictureSizeError as error:
            return self._end(InputError(f"A picture by WebRTC cannot be read: {error}.", "Send VP8 or H.264."))
        if size is None or size[0] * size[1] <= self._picture_px:
            return True
        told = f"A picture of {size[0]} x {size[1]} came by WebRTC."
        return self._end(TooLargeError(told, f"Send at most {self._picture_px} pixels."))

    def _end(self, error: InputError) -> bool:
        self._refused = True
        self._refuse(error)
        return False


def release_on_marker(receiver: RTCRtpReceiver) -> None:
    """For this receiver, before it has started. Raises AiortcError."""
    stock = _inside(receiver, _BUFFER, JitterBuffer)
    vars(receiver)[_BUFFER] = MarkerJitterBuffer(capacity=stock.capacity, is_video=True)


def bound_decoder(
    receiver: RTCRtpReceiver, frames: int, *, picture_px: int, refuse: Callable[[InputError], None]
) -> None:
    """For this receiver, before it has started; `DecodeQueue` says what is bounded how. Raises AiortcError."""
    _inside(receiver, _QUEUE, queue.Queue)
    damaged = _inside(receiver, _ERROR, threading.Event)
    vars(receiver)[_QUEUE] = DecodeQueue(frames, damaged, picture_px=picture_px, refuse=refuse)


def _inside(receiver: RTCRtpReceiver, name: str, kind: type[_T]) -> _T:
    found = vars(receiver).get(name)
    if not isinstance(found, kind):
        raise AiortcError(f"This aiortc has no {name}.", "Install aiortc 1.16, or turn the option off.")
    return found


def replace_intake(receiver: RTCRtpReceiver, buffer: JitterBuffer, decoder_queue: queue.Queue[object]) -> None:
    """Give a receiver another buffer for packets and another queue to its decoder, before it has started.

    Raises AiortcError.
    """
    for name, kind, new in ((_BUFFER, JitterBuffer, buffer), (_QUEUE, queue.Queue, decoder_queue)):
        _inside(receiver, name, kind)
        vars(receiver)[name] = new
