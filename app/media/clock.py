"""Makes a file's timestamps continuous where its clock restarts or leaps: joined files, cameras that were restarted.

Pictures and sound have to be read through the same rules to stay in sync. Independent of codecs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import av

from .source import SourceBrokenError, SourceFrame

_BACK_S = Fraction(1, 10)  # decoding times of a stream never decrease; less than this is inexact rounding
_LEAP_S = Fraction(3600)  # a picture may stand for long: a slide, a screen where nothing moves
_LEAP_OF_BROADCAST_S = Fraction(10)  # formats whose clock may change at any time; FFmpeg's dts_delta_threshold
_START_BYTES = 32 << 20
_SAME_JOIN_S = Fraction(1)  # streams of one file end within this of each other


@dataclass(slots=True, kw_only=True)
class _Stream:
    """shift: index of the shift in use. last_s, end_s: shifted decoding time of the newest packet, and its end.

    usual_s: the last duration of a packet that can be believed.
    """

    shift: int
    last_s: Fraction
    end_s: Fraction
    usual_s: Fraction = Fraction(0)


class SteadyClock:
    """Says by how much each packet's times are to be shifted, in the order in which the packets stand in the file.

    A join shifts all streams by the same amount, each from its own first packet behind the join on.
    """

    def __init__(self, leap_s: Fraction = _LEAP_S) -> None:
        """leap_s: how far time may advance between two packets, seconds."""
        self._leap_s = leap_s
        self._shifts = [Fraction(0)]
        self._streams: dict[int, _Stream] = {}

    def shift(self, stream: int, dts_s: Fraction | None, duration_s: Fraction) -> Fraction:
        """Seconds to add to the times of the next packet of `stream`. dts_s: its decoding time, None if unknown."""
        state = self._streams.get(stream)
        if dts_s is None:
            return self._shifts[state.shift if state is not None else -1]
        if state is None:
            state = self._streams[stream] = self._begin(dts_s)
        shifted = dts_s + self._shifts[state.shift]
        if shifted < state.last_s - _BACK_S or shifted > self._newest() + self._leap_s:
            state.shift = self._join(dts_s, state)
            shifted = dts_s + self._shifts[state.shift]
        if duration_s <= self._leap_s:  # else a muxer computed it from the leap behind this packet
            state.usual_s = duration_s
        duration_s = state.usual_s
        state.last_s = shifted
        state.end_s = max(state.end_s, shifted + duration_s)
        return self._shifts[state.shift]

    @property
    def jumped(self) -> bool:
        """Whether anything was shifted so far."""
        return len(self._shifts) > 1

    def _newest(self) -> Fraction:
        return max(state.end_s for state in self._streams.values())

    def _begin(self, dts_s: Fraction) -> _Stream:
        """A stream that begins, with the shift that brings it next to what was read before."""
        shift = 0
        if self._streams:
            newest_s = self._newest()
            shift = min(range(len(self._shifts)), key=lambda index: abs(dts_s + self._shifts[index] - newest_s))
            if abs(dts_s + self._shifts[shift] - newest_s) > _LEAP_S:
                shift = self._add(newest_s - dts_s)
        start_s = dts_s + self._shifts[shift]
        return _Stream(shift=shift, last_s=start_s, end_s=start_s)

    def _join(self, dts_s: Fraction, state: _Stream) -> int:
        """The shift behind a join: one that another stream has found, one that was left by mistake, or a new one."""
        for index, known in enumerate(self._shifts):
            back_s = _SAME_JOIN_S if index > state.shift else _BACK_S
            if index != state.shift and -back_s < dts_s + known - state.end_s < _SAME_JOIN_S:
                return index
        return self._add(self._newest() - dts_s)

    def _add(self, shift_s: Fraction) -> int:
        self._shifts.append(shift_s)
        return len(self._shifts) - 1


def clock_may_jump(container: av.container.InputContainer) -> bool:
    """Whether a format's clock may change at any time, so that first and last timestamp do not give the length."""
    return bool(container.format.flags & av.format.Flags.ts_discont.value)


def clock_of(container: av.container.InputContainer) -> SteadyClock:
    """A clock that tells leaps as the file's format needs."""
    return SteadyClock(_LEAP_OF_BROADCAST_S if clock_may_jump(container) else _LEAP_S)


def steady_packets(container: av.container.InputContainer, clock: SteadyClock) -> Iterator[av.Packet]:
    """All packets of a file with continuous times; those of sound that would overlap at a join are left out."""
    sound_dts: dict[int, int] = {}
    for packet, shift_s in _shifted(container, clock):
        shift = round(shift_s / Fraction(packet.time_base)) if shift_s else 0
        if shift:
            packet.pts = packet.pts + shift if packet.pts is not None else None
            packet.dts = packet.dts + shift if packet.dts is not None else None
        if packet.stream.type == "audio" and packet.dts is not None:
            newest = sound_dts.get(packet.stream.index)
            if shift and newest is not None and packet.dts <= newest:
                continue
            sound_dts[packet.stream.index] = packet.dts
        yield packet


def believable(frames: Iterator[SourceFrame], time_base: Fraction) -> Iterator[SourceFrame]:
    """The frames; one that is said to last longer than a leap, until the next one's time, which was steadied."""
    held: SourceFrame | None = None
    try:
        for frame in frames:
            if held is not None:
                yield replace(held, duration=max(1, frame.pts - held.pts))
            held = frame if frame.duration * time_base > _LEAP_S else None
            if held is None:
                yield frame
    except SourceBrokenError:
        if held is not None:
            yield held
        raise
    if held is not None:
        yield held


def first_shifts(container: av.container.InputContainer) -> Mapping[int, Fraction]:
    """By how many seconds `steady_packets` shifts the first packet of each stream, by index. Reads the file's start."""
    found: dict[int, Fraction] = {}
    awaited = {stream.index for stream in container.streams if stream.type in ("video", "audio")}
    read = 0
    try:
        for packet, shift_s in _shifted(container, clock_of(container)):
            found.setdefault(packet.stream.index, shift_s)
            read += packet.size
            if awaited <= found.keys() or read > _START_BYTES:
                break
    except av.error.FFmpegError:
        return found  # the reader comes to it too, and says so
    return found


def _shifted(container: av.container.InputContainer, clock: SteadyClock) -> Iterator[tuple[av.Packet, Fraction]]:
    """All packets as they are in the file, with the seconds by which each is to be shifted."""
    for packet in container.demux():
        if not packet.size or packet.stream.type not in ("video", "audio"):
            yield packet, Fraction(0)
            continue
        tick = Fraction(packet.time_base)
        dts_s = packet.dts * tick if packet.dts is not None else None
        yield packet, clock.shift(packet.stream.index, dts_s, (packet.duration or 0) * tick)
