"""The sound that a WebRTC peer sends: received without waiting, stamped with its capture time, given to its session.

Packets that nobody listens to are dropped before the decoder. Times are monotonic, the clock of the peer's pictures.
Depends on aiortc's receivers and sessions' sound, not on signalling.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

import av
import numpy as np
from aiortc import RTCRtpReceiver
from aiortc.jitterbuffer import MAX_MISORDER, JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from aiortc.utils import uint16_add

from app.session.sound import SoundHub

from .jitter import replace_intake

_CLOCK_HZ = 48_000  # RFC 7587, section 4.1: the clock of every Opus payload
_MAX_WAITING_PACKETS = 50  # for the decoder: one second of the usual 20 ms
_MAX_LATE_TICKS = _CLOCK_HZ
_SETTLE_PACKETS = 256
_MIN_HOLE_TICKS = _CLOCK_HZ // 200  # the steps of ArrivalClock are smaller
_MAX_HOLE_TICKS = _CLOCK_HZ // 5  # longer ones are pauses, which are for the listener to keep
_NS_PER_S = 1_000_000_000


class ArrivalClock:
    """Maps a sender's RTP time to our monotonic time, both in 1/48000 s, by the packets that were delayed least.

    The network and a busy server delay some packets by more than others. What a source captured evenly stays even, and
    a delay that stays is followed within some `_SETTLE_PACKETS`. A result is never later than the packet's arrival, and
    at most a second earlier.
    """

    def __init__(self) -> None:
        self._offset_ticks: float | None = None

    def map(self, rtp_ticks: int, arrived_ticks: int) -> int:
        """The time at which the least delayed packet would have come."""
        offset = arrived_ticks - rtp_ticks
        late = 0.0 if self._offset_ticks is None else offset - self._offset_ticks
        if self._offset_ticks is None or not 0 <= late <= _MAX_LATE_TICKS:  # also: the sender began anew
            self._offset_ticks = float(offset)
        else:
            self._offset_ticks += late / _SETTLE_PACKETS
        return rtp_ticks + int(self._offset_ticks)


class PacketBuffer(JitterBuffer):
    """Hands every packet of sound on as it comes: each is a whole frame.

    aiortc's own buffer holds four packets back, and after a loss up to sixteen. Packets that come twice or after a
    later one are dropped, and those without data, which would end the decoder.
    """

    def __init__(self) -> None:
        super().__init__(capacity=1)
        self._newest: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        number = packet.sequence_number
        stale = self._newest is not None and uint16_add(self._newest, -number) < MAX_MISORDER
        if stale or not packet.payload:
            return False, None
        self._newest = number
        return False, JitterFrame(data=packet.payload, timestamp=packet.timestamp)


class SoundQueue(queue.Queue[object]):
    """Between the network and the decoder: takes a packet only while it is wanted and at most 50 wait.

    A packet's time stamp becomes its time on our clock, in 1/48000 s; the decoder passes it on as pts.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        super().__init__()
        self.dropped = 0
        self._wanted = wanted
        self._clock = ArrivalClock()

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Never waits. None ends the decoder: it is always taken, and what waits is left out."""
        if item is None:
            while not self.empty():  # the event loop waits for the decoder's end
                self.get_nowait()
            super().put(None)
            return
        assert isinstance(item, tuple)
        _, frame = item
        assert isinstance(frame, JitterFrame)
        frame.timestamp = self._clock.map(frame.timestamp, time.monotonic_ns() * _CLOCK_HZ // _NS_PER_S)
        if self.qsize() >= _MAX_WAITING_PACKETS or not self._wanted():
            self.dropped += 1
        else:
            super().put(item)


class PeerSound:
    """Gives the sound that a receiver gets to a session. Made before the receiver has started. Raises AiortcError."""

    def __init__(self, receiver: RTCRtpReceiver, hub: SoundHub) -> None:
        self._track = receiver.track
        self._source = source = hub.open()
        self._end_ticks = 0  # where the last frame ended
        replace_intake(receiver, PacketBuffer(), SoundQueue(lambda: source.wanted))

    async def run(self) -> None:
        """Until the track ends."""
        try:
            while True:
                frame = await self._track.recv()
                assert isinstance(frame, av.AudioFrame)
                self._give(frame)
        except MediaStreamError:
            return
        finally:
            self.close()

    def _give(self, frame: av.AudioFrame) -> None:
        """Hand it on, after silence in place of packets that were lost: what follows would be early."""
        assert frame.pts is not None
        lost = frame.pts - self._end_ticks
        if _MIN_HOLE_TICKS <= lost <= _MAX_HOLE_TICKS:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * lost), np.int16), format="s16", layout="stereo")
            silence.sample_rate = _CLOCK_HZ
            self._source.give(silence, _captured_ns(self._end_ticks, frame.samples))
        self._end_ticks = frame.pts + frame.samples
        self._source.give(frame, _captured_ns(frame.pts, frame.samples))

    def close(self) -> None:
        """The session's sound comes from others. Closing twice is fine."""
        self._source.close()


def _captured_ns(arrived_ticks: int, packet_ticks: int) -> int:
    """When a packet's first sample was captured: it leaves after its last one. (A picture leaves at its own time.)"""
    return (arrived_ticks - packet_ticks) * _NS_PER_S // _CLOCK_HZ
