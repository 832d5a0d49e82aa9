"""Decides how the source's sound gets into an output: copied, encoded again or left out; and words it for the user.

Copying is tried on a few packets in memory with the real muxer, since its rules (sample rates, headers) are many.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import av
from av.bitstream import BitStreamFilterContext

from .containers import Container
from .open_media import open_media

_TRIED_PACKETS = 16
_SEARCHED_PACKETS = 500  # for one that can be decoded
_ADTS_FILTER = "aac_adtstoasc"
_ADTS_SYNC = (0xFF, 0xF0)
_LAYOUTS: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("mono", "stereo", "3.0", "5.0", "5.1", "7.1")},
        **{"5.0(side)": "5.0", "5.1(side)": "5.1"},
        **{"1 channels": "mono", "2 channels": "stereo", "6 channels": "5.1", "8 channels": "7.1"},
    }
)
"""Layouts that both encoders and players know, by the source's; all others become stereo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Where the sound comes from. origin_s: the time in that file that becomes 0 in the output, seconds."""

    path: Path
    origin_s: Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundChoice:
    """What becomes of a sound. codec: in the output; empty if the sound is left out.

    copies: packets are copied, with `packet_filter` if that is not empty. rate (Hz) and layout: of the encoder.
    notice: a sentence for the user; empty if the sound is copied.
    """

    codec: str = ""
    copies: bool = False
    packet_filter: str = ""
    rate: int = 0
    layout: str = ""
    notice: str = ""


def choose_sound(sound: Sound, kind: Container) -> SoundChoice:
    """What becomes of `sound` in a container. Reads the whole file if its sound is AAC with ADTS headers."""
    with open_media(sound.path) as source:
        stream = best_sound(source)
        if stream is None or stream.codec_context is None:
            return _left_out(sound, "its codec is unknown here")
        codec = stream.codec_context.codec.canonical_name
        reason = f"{kind.muxer} files do not take {codec}"
        if codec in kind.sound_copied:
            packet_filter = _ADTS_FILTER if codec == "aac" and not stream.codec_context.extradata else ""
            reason = "its format changes on the way" if packet_filter and _adts_changes(sound.path) else ""
            if not reason and _muxes(sound.path, kind, packet_filter):
                return SoundChoice(codec=codec, copies=True, packet_filter=packet_filter)
            reason = reason or f"{kind.muxer} files do not take {codec} of {_format(stream.codec_context)}"
        return _encoded(sound, source, stream, kind, reason)


def best_sound(source: av.container.InputContainer) -> av.AudioStream | None:
    """The sound that a player would play."""
    best = source.streams.best("audio")
    if isinstance(best, av.AudioStream):
        return best
    return next(iter(source.streams.audio), None)


def is_adts(packet: av.Packet) -> bool:
    """Whether a packet of AAC begins with an ADTS header (ISO/IEC 14496-3, 1.A.2.2)."""
    head = bytes(memoryview(packet)[:2])
    return len(head) == 2 and (head[0], head[1] & 0xF0) == _ADTS_SYNC


def _left_out(sound: Sound, reason: str) -> SoundChoice:
    return SoundChoice(notice=f"The sound of {sound.path} cannot be read ({reason}): the output has no sound.")


def _encoded(
    sound: Sound, source: av.container.InputContainer, stream: av.AudioStream, kind: Container, reason: str
) -> SoundChoice:
    try:
        first = next(_decodable(source, stream), None)
        if first is None:
            return _left_out(sound, "nothing in it can be decoded")
        rate, layout = _nearest_rate(kind.sound_encoder, first.sample_rate), _LAYOUTS.get(first.layout.name, "stereo")
        av.AudioResampler(format="fltp", layout=layout, rate=rate).resample(first)
    except av.error.FFmpegError as error:
        return _left_out(sound, error.strerror or str(error))
    codec = kind.sound_encoder.removeprefix("lib")
    before, after = f"{first.sample_rate} Hz {first.layout.name}", f"{rate} Hz {layout}"
    notice = f"The sound ({stream.codec_context.codec.canonical_name}, {before}) is encoded again as {codec}, {after}"
    return SoundChoice(codec=codec, rate=rate, layout=layout, notice=f"{notice}: {reason}.")


def _decodable(source: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    for packet in islice(source.demux(stream), _SEARCHED_PACKETS):
        try:
            yield from stream.decode(packet)
        except av.error.FFmpegError:
            continue  # damaged packets are passed over while rendering too


def _nearest_rate(encoder: str, rate: int) -> int:
    """The lowest rate of the encoder that keeps all of the sound; if there is none, its highest."""
    rates: list[int] = sorted(av.Codec(encoder, "w").audio_rates or [rate])
    return next((offered for offered in rates if offered >= rate), rates[-1])


def _format(context: av.AudioCodecContext) -> str:
    return f"{context.sample_rate} Hz {context.layout.name}"


def _adts_changes(path: Path) -> bool:
    """Whether profile, rate or channels differ between the ADTS headers of a file: one MP4 header holds one of each."""
    found: set[tuple[int, int]] = set()
    with open_media(path) as source:
        stream = best_sound(source)
        try:
            for packet in source.demux(stream):
                if packet.size > 4 and is_adts(packet):
                    head = memoryview(packet)
                    found.add((head[2] & 0xFD, head[3] & 0xC0))
        except av.error.FFmpegError:
            pass  # the rest cannot be read while rendering either
    return len(found) > 1


def _muxes(path: Path, kind: Container, packet_filter: str) -> bool:
    """Whether the container takes the sound's first packets as they are, while it grows and when it is finished.

    The options of finished files place an index, for which a file in memory would have to be opened again.
    """
    return all(_muxes_with(path, kind, packet_filter, options) for options in (kind.growing, {}))


def _muxes_with(path: Path, kind: Container, packet_filter: str, options: Mapping[str, str]) -> bool:
    try:
        with (
            open_media(path) as source,
            av.open(io.BytesIO(), "w", format=kind.muxer, options=dict(options)) as tried,
        ):
            stream = best_sound(source)
            assert stream is not None
            to = tried.add_stream_from_template(stream, opaque=True)
            bitstream = BitStreamFilterContext(packet_filter, stream) if packet_filter else None
            tried.start_encoding()
            whole = (packet for packet in source.demux(stream) if packet.size and packet.dts is not None)
            for packet in islice(whole, _TRIED_PACKETS):
                for filtered in bitstream.filter(packet) if bitstream is not None else (packet,):
                    filtered.stream = to
                    tried.mux(filtered)
    except (av.error.FFmpegError, ValueError):
        return False
    return True
