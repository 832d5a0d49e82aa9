"""Copies the source's sound to an output: as it is if the container supports the codec, else re-encoded.

Timestamps are shifted by the source's origin, so that sound and picture stay in sync.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from .containers import Container

_OPUS_RATES = (48000, 24000, 16000, 12000, 8000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Where the sound comes from. origin_s: the time in that file that becomes 0 in the output, seconds."""

    path: Path
    origin_s: Fraction


class SoundFeed:
    """The packets of a `Sound` for one output container, in time order.

    Owns its own reader of the source. broken: why the sound ends early, or empty.
    """

    def __init__(self, sound: Sound, output: av.container.OutputContainer, kind: Container) -> None:
        """Adds a stream to `output`, before anything is written to it."""
        self.broken = ""
        self._origin_s = sound.origin_s
        self._input = av.open(str(sound.path))
        self._from = self._input.streams.best("audio") or self._input.streams.audio[0]
        codec = self._from.codec_context.codec.canonical_name
        self._copies = codec in kind.sound_copied
        if self._copies:
            self._to = output.add_stream_from_template(self._from, opaque=True)
        else:
            self._to = output.add_stream(kind.sound_encoder, rate=self._rate(kind.sound_encoder))
            self._to.codec_context.layout = "mono" if self._from.codec_context.channels == 1 else "stereo"
        written = codec if self._copies else kind.sound_encoder.removeprefix("lib")
        self._primed = written in kind.sound_primed
        self._packets = self._copied() if self._copies else self._encoded()
        self._next: av.Packet | None = None

    def until(self, seconds: Fraction | None) -> Iterator[av.Packet]:
        """Packets with more than half of their duration before `seconds` (None: all remaining ones)."""
        while True:
            packet = self._next or next(self._packets, None)
            self._next = packet
            if packet is None or (seconds is not None and _middle_s(packet) >= seconds):
                return
            self._next = None
            if packet.pts < 0 and not self._primed:
                continue
            packet.stream = self._to
            yield packet

    def close(self) -> None:
        """Close the source."""
        self._input.close()

    def _rate(self, encoder: str) -> int:
        rate = int(self._from.codec_context.sample_rate)
        return rate if encoder != "libopus" or rate in _OPUS_RATES else _OPUS_RATES[0]

    def _demuxed(self) -> Iterator[av.Packet]:
        try:
            yield from (packet for packet in self._input.demux(self._from) if packet.size)
        except av.error.FFmpegError as error:
            self.broken = str(error)

    def _copied(self) -> Iterator[av.Packet]:
        shift = round(self._origin_s / self._from.time_base)
        for packet in self._demuxed():
            if packet.is_corrupt:
                return
            if packet.pts is None or packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            if packet.pts + (packet.duration or 0) >= 0:  # the packet that ends at 0 primes the decoder
                yield packet

    def _encoded(self) -> Iterator[av.Packet]:
        for frame in self._decoded():
            yield from self._to.encode(frame)
        yield from self._to.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        shift = round(self._origin_s / self._from.time_base)
        for packet in self._demuxed():
            try:
                frames = self._from.decode(packet)
            except av.error.FFmpegError as error:
                self.broken = str(error)
                return
            for frame in frames:
                if frame.pts is not None:
                    frame.pts -= round(shift * self._from.time_base / frame.time_base)
                    if frame.pts < 0:
                        continue
                yield frame
        with suppress(av.error.FFmpegError):  # nothing is left to drain after corrupt data
            yield from self._from.decode(None)


def _middle_s(packet: av.Packet) -> Fraction:
    middle: Fraction = packet.pts + Fraction(packet.duration or 0, 2)
    return middle * Fraction(packet.time_base)
