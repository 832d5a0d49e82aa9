"""A growing MP4 with a variable frame rate and sound: always playable, and an ordinary file once finished.

While it grows it consists of fragments of about a second (frag_keyframe): a killed process loses only the last one.
`defragment` remuxes it, without re-encoding, to a file with the index at the front. Independent of threads and clocks.
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

from app.disk.private import private_file
from app.media.colours import ToYuv
from app.media.containers import CONTAINERS
from app.media.picture import cover
from pipelines.core.errors import OutputError
from pipelines.core.types import Picture

from .recording_sound import SoundFormat

TICKS_PER_SECOND = 90_000
"""The time base of pictures."""

_KIND = CONTAINERS[".mp4"]
_FRAGMENT_TICKS = TICKS_PER_SECOND
_BT709_MATRIX = 1  # AVCOL_SPC_BT709, as codec contexts number it
# Leaves time for the model: half that of "veryfast", for a file a quarter larger. No B-frames: pictures stay in order.
_ENCODER = {"preset": "superfast", "crf": "20", "bf": "0", "g": "600", "forced-idr": "1", "rc-lookahead": "0"}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system and the muxer into OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OutputError(
            f"The disk is full: the recording {path.name} ended."
            if full
            else f"The recording {path.name} ended: {reason}.",
            "What was recorded until then is playable.",
        ) from error


class RecordingFile:
    """One file being recorded. size: even (width, height); pictures of other sizes are cropped and scaled to it.

    Methods raise OutputError when writing fails; after that only `abandon` may be called.
    """

    def __init__(self, path: Path, size: tuple[int, int], sound: SoundFormat | None) -> None:
        self.path = path
        self.frames = 0
        self.has_sound = False
        self._size = size
        self._to_yuv = ToYuv()
        self._durations: dict[int, int] = {}
        self._next_key = 0
        with output_errors(path):
            private_file(path)
            self._container: Any = av.open(str(path), "w", format="mp4", options=dict(_KIND.growing))
            self._video = self._add_video()
            self._sound: Any = None
            if sound is not None:
                self._sound = self._container.add_stream("aac", rate=sound.rate_hz, layout=sound.layout)
            self._container.start_encoding()  # opens the file

    def write_picture(self, picture: Picture, pts: int, duration: int) -> None:
        """Encode and write a picture. pts, duration: in 1/90000 s; pts increases strictly."""
        width, height = self._size
        if picture.shape[:2] != (height, width):
            picture = cover(picture, width, height)
        frame = self._to_yuv(picture)
        frame.pts, frame.time_base, frame.duration = pts, Fraction(1, TICKS_PER_SECOND), duration
        if pts >= self._next_key:  # by time, not by count: a slow stream must not lose more seconds than a fast one
            frame.pict_type = PictureType.I
            self._next_key = pts + _FRAGMENT_TICKS
        self._durations[pts] = duration
        with output_errors(self.path):
            self._mux_video(self._video.encode(frame))
        self.frames += 1

    def write_sound(self, frame: av.AudioFrame) -> None:
        """Encode and write the samples that follow the last ones."""
        with output_errors(self.path):
            self._container.mux(self._sound.encode(frame))
        self.has_sound = True

    def close(self) -> None:
        """Flush the encoders and close the growing file."""
        with output_errors(self.path):
            self._mux_video(self._video.encode(None))
            if self._sound is not None:
                self._container.mux(self._sound.encode(None))
            self._container.close()

    def defragment(self) -> None:
        """After `close`: replace the fragmented file by one with its index at the front.

        It has a sound track only if sound was written. Raises OutputError; the fragmented file is then unchanged.
        """
        final = self.path.with_name(f".{self.path.stem}.final.mp4")
        try:
            final.unlink(missing_ok=True)
            private_file(final)
            copied = _remux(self.path, final, sound=self.has_sound)
            if copied != self.frames:
                raise OutputError(f"{copied} of {self.frames} frames were found in {self.path.name}.")
            final.replace(self.path)
        except (av.error.FFmpegError, OSError, OutputError) as error:
            with suppress(OSError):
                final.unlink(missing_ok=True)
            raise OutputError(
                f"{self.path.name} stays in fragments: {error}.", "It is playable; some editors need it remuxed first."
            ) from error

    def abandon(self) -> None:
        """Close after an error, and cut off an incomplete fragment. Never raises."""
        with suppress(av.error.FFmpegError, OSError):  # the error that led here is already being reported
            self._container.close()
        with suppress(OSError):
            _KIND.trim(self.path)

    def _add_video(self) -> Any:
        stream = self._container.add_stream("libx264", rate=30)  # nominal: pictures carry their own times
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_PER_SECOND)
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
    """Copy all packets, with or without the sound track. Returns the number of pictures."""
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
