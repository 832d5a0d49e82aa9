"""The table of output files: muxer, video encoder and sound codecs by file suffix. Writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

from pipelines.core.errors import OutputError

from .pieces import trim_boxes, trim_nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One kind of video file.

    trim: truncates a partially written end of a growing file; returns True if the rest is complete. growing: muxer
    options while frames are added (a killed process leaves a playable file); finished: those of the final file.
    annexb_filter: bitstream filter that turns packets read back from the file into the encoder's format; empty if they
    are the same. sound_copied: codecs copied without re-encoding; others are encoded with sound_encoder. sound_primed:
    codecs whose first packet may have a negative time (it primes the decoder); elsewhere it would shift all times.
    memory_per_px: bytes that the encoder takes for a pixel of the picture's size, measured at 2048x2048.
    """

    muxer: str
    trim: Callable[[Path], bool]
    growing: Mapping[str, str]
    finished: Mapping[str, str]
    video_encoder: str
    video_options: Mapping[str, str]
    annexb_filter: str
    sound_copied: frozenset[str]
    sound_encoder: str
    sound_primed: frozenset[str]
    memory_per_px: int

    def encoder_options(self, frame_rate: Fraction) -> dict[str, str]:
        """Encoder options, with a key frame about every second: the unit of writing and resuming a growing file."""
        return {**self.video_options, "g": str(min(60, max(12, round(frame_rate))))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Animation:
    """A file of pictures with one palette, which is made once all pictures are known; it has no sound.

    tick_s: the unit of its times, seconds. shortest_ticks: pictures that follow sooner are slowed down by players.
    """

    muxer: str
    encoder: str
    tick_s: Fraction
    shortest_ticks: int

    @property
    def max_frame_rate(self) -> Fraction:
        """Frames per second that it can show."""
        return 1 / (self.tick_s * self.shortest_ticks)


# No B-frames: decoding order is display order, so every complete packet of a growing file is one rendered frame.
_H264 = {"preset": "veryfast", "crf": "18", "bf": "0", "rc-lookahead": "10"}
_VP9 = {"crf": "30", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1", "lag-in-frames": "0"}
# While a file grows: write each fragment to disk immediately, and do not let sound that starts late or ends early delay
# video in the muxer's queue (microseconds).
_GROWING = {"flush_packets": "1", "max_interleave_delta": "100000"}
_GROWING_MATROSKA = {**_GROWING, "cluster_time_limit": "1000"}  # milliseconds
_GROWING_BOXES = {"movflags": "frag_keyframe+delay_moov+default_base_moof", **_GROWING}
_MP4_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
_MOV_SOUND = _MP4_SOUND | {"pcm_s16le", "pcm_s24le", "pcm_s16be", "pcm_s24be"}

CONTAINERS: Mapping[str, Container] = MappingProxyType(
    {
        ".mp4": Container(
            muxer="mp4",
            trim=trim_boxes,
            growing=_GROWING_BOXES,
            finished={"movflags": "faststart"},
            video_encoder="libx264",
            video_options=_H264,
            annexb_filter="h264_mp4toannexb",
            sound_copied=_MP4_SOUND,
            sound_encoder="aac",
            sound_primed=_MP4_SOUND,
            memory_per_px=60,
        ),
        ".mov": Container(
            muxer="mov",
            trim=trim_boxes,
            growing=_GROWING_BOXES,
            finished={"movflags": "faststart"},
            video_encoder="libx264",
            video_options=_H264,
            annexb_filter="h264_mp4toannexb",
            sound_copied=_MOV_SOUND,
            sound_encoder="aac",
            sound_primed=_MOV_SOUND,
            memory_per_px=60,
        ),
        ".mkv": Container(
            muxer="matroska",
            trim=trim_nothing,
            growing=_GROWING_MATROSKA,
            finished={},
            video_encoder="libx264",
            video_options=_H264,
            annexb_filter="h264_mp4toannexb",
            sound_copied=frozenset(
                {"aac", "mp3", "ac3", "eac3", "alac", "opus", "vorbis", "flac", "pcm_s16le", "pcm_s24le", "dts"}
            ),
            sound_encoder="aac",
            sound_primed=frozenset({"opus"}),
            memory_per_px=60,
        ),
        ".webm": Container(
            muxer="webm",
            trim=trim_nothing,
            growing=_GROWING_MATROSKA,
            finished={},
            video_encoder="libvpx-vp9",
            video_options=_VP9,
            annexb_filter="",
            sound_copied=frozenset({"opus", "vorbis"}),
            sound_encoder="libopus",
            sound_primed=frozenset({"opus"}),
            memory_per_px=90,
        ),
    }
)
"""Video files, by suffix of the output file."""

ANIMATIONS: Mapping[str, Animation] = MappingProxyType(
    {".gif": Animation(muxer="gif", encoder="gif", tick_s=Fraction(1, 100), shortest_ticks=2)}
)
"""Files of pictures, by suffix of the output file."""

FileKind = Container | Animation


def container_for(output: Path, *, named_as_folder: bool) -> FileKind | None:
    """The kind of the file `output`; None for a folder of pictures (no suffix, or ends in '/').

    Raises OutputError for an unsupported suffix.
    """
    suffix = output.suffix.lower()
    if named_as_folder or not suffix:
        return None
    if kind := CONTAINERS.get(suffix) or ANIMATIONS.get(suffix):
        return kind
    raise OutputError(
        f"{output} ends in {suffix}, which is not supported.",
        f"Use {', '.join((*CONTAINERS, *ANIMATIONS))}, or / for a folder of PNG pictures.",
    )
