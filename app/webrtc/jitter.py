"""Two changes to how aiortc receives video, applied per receiver instead of globally.

`bound_decoder`: bounds the decoder's queue (aiortc's is not), and keeps oversized pictures away from the decoder.
`release_on_marker`: releases a frame at its last packet, which has the marker bit (RFC 6184, section 5.1; RFC 7741,
section 4.1); aiortc 1.16 waits for the next frame's first packet, one frame period later. Depends on aiortc's
internals, not on sessions.
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
    """This version of aiortc has different internals."""


class MarkerJitterBuffer(JitterBuffer):
    """Releases a frame as soon as all its packets have arrived.

    A frame is complete when its packets are consecutive from the buffer's head to one with the marker bit. Reordered or
    lost packets: as in aiortc, the head waits for missing ones until the buffer is full. Empty packets at the head (a
    browser's bandwidth probes) belong to no frame and are dropped, so that they neither delay a frame nor become one.
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
                break  # the last packet had no marker: the next frame's first packet ends it, as in aiortc
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
    """The payload without the codec's header, as stored by the receiver."""
    data = packet._data  # type: ignore[attr-defined]
    assert isinstance(data, bytes)
    return data


class DecodeQueue(queue.Queue[object]):
    """The queue before a decoder: holds at most `frames`; when full, drops the newest and requests a key frame.

    Policy: dropping any frame corrupts those that follow until the next key frame, so which one is dropped does not
    matter to the picture; the oldest are kept because the decoder can still use them. A picture of more than
    `picture_px` pixels and everything after it is dropped: `refuse` is called once with the reason.
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
        """Never blocks. None ends the decoder: it is always accepted, and clears the queue."""
        if item is None:
            while not self.empty():  # the event loop joins the decoder's thread
                self.get_nowait()
            super().put(None)
        elif self._refused or not self._fits(item):
            self.dropped += 1
        elif self.qsize() >= self._frames:
            self.dropped += 1
            self._damaged.set()  # aiortc then sends a picture loss indication
        else:
            super().put(item)

    def _fits(self, item: object) -> bool:
        assert isinstance(item, tuple)
        codec, frame = item
        assert isinstance(codec, RTCRtpCodecParameters)
        try:
            size = coded_size_px(codec.name, frame.data)
        except PictureSizeError as error:
            return self._end(InputError(f"A picture over WebRTC cannot be read: {error}.", "Send VP8 or H.264."))
        if size is None or size[0] * size[1] <= self._picture_px:
            return True
        message = f"A picture of {size[0]} x {size[1]} px was sent over WebRTC."
        return self._end(TooLargeError(message, f"Send at most {self._picture_px} pixels."))

    def _end(self, error: InputError) -> bool:
        self._refused = True
        self._refuse(error)
        return False


def release_on_marker(receiver: RTCRtpReceiver) -> None:
    """Install `MarkerJitterBuffer` in this receiver, before it starts. Raises AiortcError."""
    original = _internal(receiver, _BUFFER, JitterBuffer)
    vars(receiver)[_BUFFER] = MarkerJitterBuffer(capacity=original.capacity, is_video=True)


def bound_decoder(
    receiver: RTCRtpReceiver, frames: int, *, picture_px: int, refuse: Callable[[InputError], None]
) -> None:
    """Install `DecodeQueue` in this receiver, before it starts. Raises AiortcError."""
    _internal(receiver, _QUEUE, queue.Queue)
    damaged = _internal(receiver, _ERROR, threading.Event)
    vars(receiver)[_QUEUE] = DecodeQueue(frames, damaged, picture_px=picture_px, refuse=refuse)


def _internal(receiver: RTCRtpReceiver, name: str, kind: type[_T]) -> _T:
    value = vars(receiver).get(name)
    if not isinstance(value, kind):
        raise AiortcError(f"This aiortc has no {name}.", "Install aiortc 1.16, or turn the option off.")
    return value


def replace_intake(receiver: RTCRtpReceiver, buffer: JitterBuffer, decoder_queue: queue.Queue[object]) -> None:
    """Give a receiver another buffer for packets and another queue to its decoder, before it has started.

    Raises AiortcError.
    """
    for name, kind, new in ((_BUFFER, JitterBuffer, buffer), (_QUEUE, queue.Queue, decoder_queue)):
        _internal(receiver, name, kind)
        vars(receiver)[name] = new
