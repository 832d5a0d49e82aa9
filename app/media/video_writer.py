"""Writes frames and the source's sound to a video file that is playable at any time, and can be resumed.

While frames are added, the output is written in self-contained pieces (fragmented MP4, Matroska clusters): a killed
process leaves a file that plays up to its last complete piece. `finish` remuxes it, without re-encoding, to an ordinary
file with its index in front, and replaces it atomically. Independent of the engine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from pipelines.core.errors import OutputError

from .colours import ToYuv
from .containers import Container
from .open_media import file_url, open_media
from .pieces import plays, whole_pieces
from .sound import SoundFeed
from .sound_choice import Sound, SoundChoice, choose_sound
from .writer import Left, writing

_BT709_MATRIX = 1  # AVCOL_SPC_BT709, as codec contexts number it


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPlan:
    """The file to write. size: even (width, height) in pixels. time_base: of pts and durations, seconds.

    resumable: whether --resume can go on from an incomplete file.
    """

    kind: Container
    size: tuple[int, int]
    frame_rate: Fraction
    time_base: Fraction
    sound: Sound | None
    resumable: bool = True


class VideoWriter:
    """output: the file. scratch: an existing folder on the same file system, for unfinished files."""

    def __init__(self, output: Path, scratch: Path, plan: VideoPlan, *, keep: bool, keep_last_piece: bool) -> None:
        """keep: continue after the frames in `output`. keep_last_piece: its last piece is known to be complete."""
        self._output = output
        self._plan = plan
        self._scratch = scratch
        self._durations: dict[int, int] = {}
        self._end_s = Fraction(0)
        self._frames = 0
        self._to_yuv = ToYuv()
        self._choice = choose_sound(plan.sound, plan.kind) if plan.sound is not None else SoundChoice()
        self._remarks = [self._choice.notice] if self._choice.notice else []
        growing = scratch / f"growing{output.suffix}" if keep else output
        with self._writing():
            self._file = _File(growing, plan.kind.growing, plan, self._choice)
            self._stream = self._file.add_encoder()
            if keep:
                self._copy_kept(keep_last_piece or plan.kind.trim(output))
                self._file.flush()
                growing.replace(output)  # an open file can be renamed while it is written

    @property
    def frames(self) -> int:
        return self._frames

    def remarks(self) -> list[str]:
        """What became of the sound, unless it was copied whole."""
        said, self._remarks = self._remarks, []
        return said

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """Encode one picture of the plan's size."""
        frame = self._to_yuv(image)
        frame.pts, frame.time_base, frame.duration = pts, self._plan.time_base, duration
        self._durations[pts] = duration
        with self._writing():
            self._mux(self._stream.encode(frame))
        self._frames += 1

    def finish(self, *, complete: bool) -> None:
        """Drain the encoder, then replace the growing file with an ordinary one."""
        with self._writing():
            self._mux(self._stream.encode(None))
            self._file.close(None if complete else self._end_s)
        final = self._scratch / f"final{self._output.suffix}"
        try:
            with self._writing():
                copied = self._remux(final, None if complete else self._end_s)
                if copied != self._frames:
                    raise OutputError(
                        f"Only {copied} of {self._frames} frames were found in {self._output}.",
                        "Render it again with --force.",
                    )
                final.replace(self._output)
        except BaseException:  # including an interrupt: clean up and re-raise
            with suppress(OSError):
                final.unlink(missing_ok=True)
            raise

    def suspend(self) -> None:
        """Drain the encoder, and close the growing file with the sound up to this point."""
        with self._writing():
            self._mux(self._stream.encode(None))
            self._file.close(self._end_s)

    def abandon(self) -> None:
        """Close what can be closed, and truncate the incomplete end."""
        self._file.abandon()
        with suppress(OSError):  # the original error is being raised already
            self._plan.kind.trim(self._output)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._output, self._left)

    def _left(self) -> Left:
        return Left.playable(resumable=self._plan.resumable) if plays(self._output) else Left()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._mux_one(packet)

    def _mux_one(self, packet: av.Packet) -> None:
        time_base = Fraction(packet.time_base)
        start_s = packet.pts * time_base
        self._end_s = max(self._end_s, start_s + (packet.duration or 0) * time_base)
        self._file.write(packet, start_s)

    def _copy_kept(self, keep_last: bool) -> None:
        """Copy the complete pieces of an interrupted run's output, in the encoder's format."""
        name = self._plan.kind.annexb_filter
        with open_media(self._output) as previous:
            source = previous.streams.video[0]
            context = source.codec_context
            if (context.width, context.height) != self._plan.size:
                raise OutputError(
                    f"{self._output} is {context.width}x{context.height}, not {self._plan.size}.",
                    "Start again with --force.",
                )
            bitstream = BitStreamFilterContext(name, source) if name else None
            for packet in whole_pieces(previous, source, keep_last=keep_last):
                for filtered in bitstream.filter(packet) if bitstream is not None else (packet,):
                    filtered.stream = self._stream
                    self._mux_one(filtered)
                    self._frames += 1

    def _remux(self, final: Path, end_s: Fraction | None) -> int:
        """Copy all video packets and the sound up to `end_s` (None: all of it); returns the number of frames."""
        copied = 0
        file = _File(final, self._plan.kind.finished, self._plan, self._choice)
        try:
            with open_media(self._output) as grown:
                source = grown.streams.video[0]
                stream = file.add_copy(source)
                for packet in grown.demux(source):
                    if packet.size:
                        packet.stream = stream
                        file.write(packet, packet.pts * Fraction(packet.time_base))
                        copied += 1
            file.close(end_s)
            self._remarks += file.trouble
        except BaseException:  # including an interrupt: clean up and re-raise
            file.abandon()
            raise
        return copied


class _File:
    """A video file being written: a video stream, interleaved with the sound up to the last picture."""

    def __init__(self, path: Path, options: object, plan: VideoPlan, choice: SoundChoice) -> None:
        self._plan = plan
        self._choice = choice
        self._container = av.open(file_url(path), "w", format=plan.kind.muxer, options=dict(options))  # type: ignore[call-overload]
        self._feed: SoundFeed | None = None

    @property
    def trouble(self) -> list[str]:
        """What could not be kept of the sound, known once the file is closed."""
        return self._feed.trouble if self._feed is not None else []

    def add_encoder(self) -> av.VideoStream:
        """Add the encoder's stream, and the sound's."""
        plan = self._plan
        stream = self._container.add_stream(plan.kind.video_encoder, rate=plan.frame_rate)
        stream.width, stream.height = plan.size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = plan.time_base
        context.colorspace = _BT709_MATRIX
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        context.options = plan.kind.encoder_options(plan.frame_rate)
        self._add_sound()
        return stream

    def add_copy(self, source: av.VideoStream) -> av.VideoStream:
        """Add a stream for packets of `source`, and the sound's."""
        stream = self._container.add_stream_from_template(source, opaque=True)
        self._add_sound()
        return stream

    def write(self, packet: av.Packet, start_s: Fraction) -> None:
        """Write the sound before the picture's time, then the picture."""
        self._write_sound(start_s)
        self._container.mux(packet)

    def flush(self) -> None:
        """Write the header, if nothing else has."""
        self._container.start_encoding()

    def close(self, end_s: Fraction | None) -> None:
        """Write the rest of the sound, up to `end_s` (None: all), and close the file."""
        self._write_sound(end_s)
        self._container.close()
        self._close_feed()

    def abandon(self) -> None:
        """Close without the rest; never raises."""
        with suppress(av.error.FFmpegError, OSError):  # the original error is being raised already
            self._container.close()
        self._close_feed()

    def _add_sound(self) -> None:
        if self._plan.sound is not None and self._choice.codec:
            self._feed = SoundFeed(self._plan.sound, self._choice, self._container, self._plan.kind)

    def _write_sound(self, until_s: Fraction | None) -> None:
        if self._feed is not None:
            for packet in self._feed.until(until_s):
                self._container.mux(packet)

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
