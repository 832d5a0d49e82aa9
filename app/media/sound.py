"""Brings the source's sound into an output: as it is if the container takes it, else encoded again.

Timestamps are shifted by the source's origin, so that sound and picture stay in sync.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.bitstream import BitStreamFilterContext

from .containers import Container
from .sound_choice import Sound, SoundChoice, best_sound, is_adts
from .sound_samples import RESTART_S, SteadySamples


class SoundFeed:
    """The packets of a `Sound` for one output container, in time order.

    Owns its own reader of the source. trouble: sentences on what could not be kept, known once all packets are taken.
    """

    def __init__(
        self, sound: Sound, choice: SoundChoice, output: av.container.OutputContainer, kind: Container
    ) -> None:
        """Adds a stream to `output`, before anything is written to it. choice: one that does not leave it out."""
        self._sound = sound
        self._choice = choice
        self._damaged = 0
        self._broken = ""
        self._input = av.open(str(sound.path))
        source = best_sound(self._input)
        assert source is not None, "chosen sound exists"
        self._from = source
        self._shift = round(sound.origin_s / self._from.time_base)
        self._samples = SteadySamples(rate=choice.rate, layout=choice.layout, origin_s=sound.origin_s)
        if choice.copies:
            self._to = output.add_stream_from_template(self._from, opaque=True)
        else:
            self._to = output.add_stream(kind.sound_encoder, rate=choice.rate)
            self._to.codec_context.layout = choice.layout
        self._primed = choice.codec in kind.sound_primed
        self._packets = self._copied() if choice.copies else self._encoded()
        self._next: av.Packet | None = None

    @property
    def trouble(self) -> list[str]:
        name, found = self._sound.path, []
        if self._broken:
            found.append(f"The sound of {name} cannot be read to its end: {self._broken}.")
        if self._damaged:
            lost = f"{self._damaged} damaged packet{'s' if self._damaged > 1 else ''}"
            found.append(f"The sound of {name} has {lost}, which are left out.")
        if changes := self._samples.changes:
            steady = f"{self._choice.rate} Hz {self._choice.layout}"
            found.append(f"The sound of {name} changes on the way ({', '.join(changes)}): all of it is now {steady}.")
        return found

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

    def _demuxed(self) -> Iterator[av.Packet]:
        try:
            yield from (packet for packet in self._input.demux(self._from) if packet.size)
        except av.error.FFmpegError as error:
            self._broken = error.strerror or str(error)

    def _copied(self) -> Iterator[av.Packet]:
        """Packets with increasing times, from 0 on."""
        overlap = round(RESTART_S / self._from.time_base)
        adts = self._choice.packet_filter
        bitstream = BitStreamFilterContext(adts, self._from) if adts else None
        end: int | None = None
        for packet in self._demuxed():
            if packet.is_corrupt or packet.dts is None or packet.pts is None or (adts and not is_adts(packet)):
                self._damaged += 1
                continue
            if end is not None and packet.dts - self._shift < end - overlap:
                self._shift = packet.dts - end
            packet.pts -= self._shift
            packet.dts -= self._shift
            if end is not None and packet.dts <= end - (packet.duration or 1):
                continue  # this time has its sound already
            end = packet.dts + (packet.duration or 1)
            primes = self._primed and packet.pts + (packet.duration or 0) >= 0  # it ends at 0
            if primes or packet.pts >= 0:  # before the filter, whose first packet carries the header
                yield from bitstream.filter(packet) if bitstream is not None else (packet,)

    def _encoded(self) -> Iterator[av.Packet]:
        for frame in self._samples.steady(self._decoded()):
            yield from self._to.encode(frame)
        yield from self._to.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in self._demuxed():
            try:
                yield from self._from.decode(packet)
            except av.error.FFmpegError:
                self._damaged += 1
        try:
            yield from self._from.decode(None)
        except av.error.FFmpegError:
            return  # nothing is left to drain after damaged data


def _middle_s(packet: av.Packet) -> Fraction:
    middle: Fraction = packet.pts + Fraction(packet.duration or 0, 2)
    return middle * Fraction(packet.time_base)
