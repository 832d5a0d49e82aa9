"""A growing MP4 of pictures at any times and sound: plays at any moment, becomes an ordinary file when finished.

While it grows it consists of fragments of about a second (frag_keyframe): a killed process leaves all but the last.
`make_ordinary` copies it, without encoding again, to a file with its index in front. Owns no thread and no clock.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from app.media.colours import ToYuv
from app.media.containers import CONTAINERS
from app.media.picture import Picture, cover
from pipelines.core.errors import OutputError

from .recording_sound import SoundFormat

TICKS_A_SECOND = 90_000
"""The time base of pictures."""

_KIND = CONTAINERS[".mp4"]
_PIECE_TICKS = TICKS_A_SECOND
_BT709_MATRIX = 1  # AVCOL_SPC_BT709, as codec contexts number it
# Beside a running model: half the time of "veryfast" for a file a quarter larger. No B-frames: a kill loses no order.
_ENCODER = {"preset": "superfast", "crf": "20", "bf": "0", "g": "600", "forced-idr": "1", "rc-lookahead": "0"}


@contextmanager
def recording_to(path: Path) -> Iterator[None]:
    """Turn what the system or the muxer raises into OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"The disk is full: the recording {path.name} ended."
            if full
            else f"The recording {path.name} ended: {reason}.",
            "What was recorded until then plays.",
        ) from error


class RecordingFile:
    """One file being recorded. size: even (width, height); pictures of other sizes are cut and scaled to it.

    Every method raises OutputError when the disk does not take it; then only `abandon` may follow.
    """

    def __init__(self, path: Path, size: tuple[int, int], sound: SoundFormat | None) -> None:
        self.path = path
        self.frames = 0
        self.has_sound = False
        self._size = size
        self._to_yuv = ToYuv()
        self._durations: dict[int, int] = {}
        self._next_key = 0
        with recording_to(path):
            self._container: Any = av.open(str(path), "w", format="mp4", options=dict(_KIND.growing))
            self._video = self._add_video()
            self._sound: Any = None
            if sound is not None:
                self._sound = self._container.add_stream("aac", rate=sound.rate_hz, layout=sound.layout)
            self._container.start_encoding()  # opens the file

    def write_picture(self, picture: Picture, pts: int, duration: int) -> None:
        """pts, duration: in 1/90000 s; pts above the one before."""
        width, height = self._size
        if picture.shape[:2] != (height, width):
            picture = cover(picture, width, height)
        frame = self._to_yuv(picture)
        frame.pts, frame.time_base, frame.duration = pts, Fraction(1, TICKS_A_SECOND), duration
        if pts >= self._next_key:  # by time, not by count: a slow stream must not lose more than a fast one
            frame.pict_type = PictureType.I
            self._next_key = pts + _PIECE_TICKS
        self._durations[pts] = duration
        with recording_to(self.path):
            self._mux_video(self._video.encode(frame))
        self.frames += 1

    def write_sound(self, frame: av.AudioFrame) -> None:
        """Samples that follow the last ones."""
        with recording_to(self.path):
            self._container.mux(self._sound.encode(frame))
        self.has_sound = True

    def close(self) -> None:
        """Drain the encoders and end the growing file."""
        with recording_to(self.path):
            self._mux_video(self._video.encode(None))
            if self._sound is not None:
                self._container.mux(self._sound.encode(None))
            self._container.close()

    def make_ordinary(self) -> None:
        """After `close`: put a file with its index in front in the place of the fragmented one.

        It has a sound track only if sound was written.
        Raises OutputError: the fragmented file stays, and is whole.
        """
        final = self.path.with_name(f".{self.path.stem}.final.mp4")
        try:
            copied = _remux(self.path, final, sound=self.has_sound)
            if copied != self.frames:
                raise OutputError(f"{copied} of {self.frames} frames were found in {self.path.name}.")
            final.replace(self.path)
        except (av.error.FFmpegError, OSError, OutputError) as error:
            with suppress(OSError):
                final.unlink(missing_ok=True)
            raise OutputError(
                f"{self.path.name} stays in fragments: {error}.", "It plays; some editors want it copied once."
            ) from error

    def abandon(self) -> None:
        """Let go after an error, and cut off what is only half there; raises nothing."""
        with suppress(av.error.FFmpegError, OSError):  # the error that led here is already on its way
            self._container.close()
        with suppress(OSError):
            _KIND.trim(self.path)

    def _add_video(self) -> Any:
        stream = self._container.add_stream("libx264", rate=30)  # nominal: pictures carry their times
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_A_SECOND)
        context.colorspace = _BT709_MATRIX
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        context.options = dict(_ENCODER)
        return stream

    def _mux_video(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)


def _remux(growing: Path, final: Path, *, sound: bool) -> int:
    """Copy all packets, with a track for sound or without; returns the number of pictures."""
    pictures = 0
    with (
        av.open(str(growing)) as source,
        av.open(str(final), "w", format="mp4", options=dict(_KIND.finished)) as target,
    ):
        kept = [stream for stream in source.streams if sound or stream.type == "video"]
        streams = {stream: target.add_stream_from_template(stream, opaque=True) for stream in kept}
        for packet in source.demux(kept):
            if not packet.size:
                continue
            pictures += packet.stream.type == "video"
            packet.stream = streams[packet.stream]
            target.mux(packet)
    return pictures
