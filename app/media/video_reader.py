"""Decodes the frames of a video file: upright, with the right colours and timestamps. Does not decode sound.

Frames keep the file's time base; pts are relative to `SourceInfo.origin_s`, the start of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av

from pipelines.core.errors import InputError

from .alpha import decoder_of
from .clock import believable, clock_may_jump, clock_of, first_shifts, steady_packets
from .deinterlace import whole_pictures
from .frame_colours import ToRgb, check_base
from .open_media import OPENED, open_media
from .orientation import Orientation
from .source import MAX_PICTURE_PIXELS, SourceBrokenError, SourceFrame, SourceInfo, check_pixels

_SOUND_LEAD_S = Fraction(1, 20)  # sound that leads the picture by less than this is encoder priming, and is cut
_FALLBACK_RATE = Fraction(25)
_PROBED_BYTES = 8 << 20
_MISSING_S = 0.5  # a file that ends this much (and two frames) before its declared end is truncated
_DECLARES_STREAMS = frozenset({"mov", "avi", "mxf"})  # containers that state how long each stream is
_DECLARES_ALL = frozenset({"matroska", "flv", "asf"})  # containers that state how long the longest is


class VideoReader:
    """A source of the frames of one of a file's video streams: the one that players show."""

    def __init__(self, path: Path, *, max_px: int = MAX_PICTURE_PIXELS) -> None:
        """Decodes one frame to get the properties. Raises InputError if the file has none.

        max_px: of a frame; the decoder refuses a larger one before it allocates anything.
        """
        self._path = path
        self._max_px = max_px
        with _opened(path, max_px) as container:
            stream = _video_stream(container, path)
            context = stream.codec_context
            check_pixels(str(path), context.width, context.height, max_px)
            decoder_of(stream, max_px)
            first = _first_frame(container, stream, path, max_px)
            check_base(first, str(path))
            shown = Orientation.of(first)
            self._time_base = Fraction(stream.time_base)
            self._rate = Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
            self._info = SourceInfo(
                name=str(path),
                size=shown.size(first.width, first.height),
                pixel_aspect=_pixel_aspect(stream, shown),
                frame_rate=self._rate,
                time_base=self._time_base,
                frames=self._expected_frames(stream, container, float(_start_s(first))),
                origin_s=_origin_s(first, stream, container, _first_shifts(path, max_px)),
                has_sound=bool(container.streams.audio),
            )

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """Frames before `start` are decoded and discarded: the only way that is exact for every codec."""
        return believable(self._frames(start), self._time_base)

    def _frames(self, start: int) -> Iterator[SourceFrame]:
        origin = round(self._info.origin_s / self._time_base)
        usual = max(1, round(1 / self._rate / self._time_base))
        to_rgb = ToRgb()
        previous: tuple[int, int] | None = None
        index = 0
        with _opened(self._path, self._max_px) as container:
            stream = _video_stream(container, self._path)
            stream.thread_type = "AUTO"
            decoder = decoder_of(stream, self._max_px)
            decoded = whole_pictures(self._decoded(container, stream, decoder), self._time_base)
            while True:
                try:
                    frame = next(decoded, None)
                except (av.error.FFmpegError, _TruncatedError) as error:
                    seconds = float(sum(previous) * self._time_base) if previous else 0.0
                    raise SourceBrokenError(self._info.name, index, seconds, _reason(error)) from error
                if frame is None:
                    return
                earliest = previous[0] + 1 if previous else 0
                expected = sum(previous) if previous else 0
                pts = max(earliest, self._ticks(frame, frame.pts) - origin if frame.pts is not None else expected)
                previous = (pts, self._ticks(frame, frame.duration or 0) or usual)
                if index >= start:
                    check_pixels(self._info.name, frame.width, frame.height, self._max_px)
                    yield SourceFrame(index=index, image=to_rgb(frame), pts=pts, duration=previous[1])
                index += 1

    def _expected_frames(
        self, stream: av.VideoStream, container: av.container.InputContainer, start_s: float
    ) -> int | None:
        if stream.frames:
            return int(stream.frames)
        end_s = _declared_end_s(_kind(container), stream)
        seconds = end_s - start_s if end_s is not None else (container.duration or 0) / av.time_base
        by_time = max(0, round(seconds * self._rate)) or None
        if not clock_may_jump(container) or by_time is None:
            return by_time
        by_bytes = _frames_by_bytes(self._path, self._max_px, stream.index)
        return by_time if by_bytes is None or 2 / 3 < by_time / by_bytes < 3 / 2 else by_bytes

    def _ticks(self, frame: av.VideoFrame, time: int) -> int:
        """A time of the frame in this source's time base: a filter may count in another."""
        return round(time * Fraction(frame.time_base or self._time_base) / self._time_base)

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream, decoder: av.VideoCodecContext
    ) -> Iterator[av.VideoFrame]:
        """Frames in display order. Raises FFmpegError for corrupt data and _TruncatedError for a truncated file, both
        only after every frame before that point was yielded."""
        end_s: dict[int, Fraction] = {}
        clock = clock_of(container)
        failure: Exception | None = None
        resyncs = container.format.name == "mpegts"  # there, a corrupt packet does not end the stream
        try:
            for packet in steady_packets(container, clock):
                if packet.is_corrupt and not resyncs:
                    raise _TruncatedError("the file ends in the middle of a frame")
                if not packet.size:
                    continue
                number = packet.stream.index
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)
                    end_s[number] = max(end_s.get(number, end), end)
                if number == stream.index:
                    yield from decoder.decode(packet)
        except (av.error.FFmpegError, _TruncatedError) as error:
            failure = error
        yield from _drained(decoder)
        if failure is None and not clock.jumped:  # else the header's length is in other times
            failure = _missing_end(container, stream, end_s, max(_MISSING_S, 2 / float(self._rate)))
        if failure is not None:
            raise failure


class _TruncatedError(Exception):
    """The file is truncated."""


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, av.error.FFmpegError) else None) or str(error)


def _drained(decoder: av.VideoCodecContext) -> Iterator[av.VideoFrame]:
    try:
        yield from decoder.decode(None)
    except av.error.FFmpegError:
        return  # nothing may be left to drain after corrupt data, which the caller reports


def _opened(path: Path, max_px: int) -> av.container.InputContainer:
    """Opening decodes a frame of some formats: within the same limit."""
    try:
        return open_media(path, max_px)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a video that can be read: {_reason(error)}.",
            f"If it was copied or downloaded, it may be truncated; else convert it to MP4 first. {OPENED}",
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The stream that players show: of those marked as default, else of all, the one with the most pixels."""
    no_video = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    found = [s for s in container.streams.video if not s.disposition & no_video and s.codec_context is not None]
    if not found:
        sound = "only sound" if container.streams.audio else "no video"
        raise InputError(f"{path} has {sound}.", "Give a video file or a folder of pictures.")
    moving = [stream for stream in found if stream.frames != 1] or found  # an AVIF sequence begins with a still picture
    marked = [stream for stream in moving if stream.disposition & av.stream.Disposition.default] or moving
    return max(marked, key=lambda stream: stream.codec_context.width * stream.codec_context.height)


def _first_frame(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path, max_px: int
) -> av.VideoFrame:
    reason = "it has no frames"
    try:
        for frame in container.decode(stream):
            return frame
    except av.error.FFmpegError as error:
        reason = _reason(error)
    raise InputError(
        f"No frame of {path} can be decoded: {reason}.",
        f"Scale it down if it has more than {max_px / 1e6:.0f} megapixels, else download or export it again.",
    )


def _pixel_aspect(stream: av.VideoStream, shown: Orientation) -> float:
    aspect = float(stream.sample_aspect_ratio or 0) or 1.0
    return 1 / aspect if shown.transposed else aspect


def _frames_by_bytes(path: Path, max_px: int, stream: int) -> int | None:
    """As many frames as the whole file has if it goes on as it begins. None: it cannot be told."""
    frames = read = 0
    with _opened(path, max_px) as container:
        try:
            for packet in container.demux():
                read = max(read, packet.pos or 0)
                frames += packet.stream.index == stream and bool(packet.size)
                if read > _PROBED_BYTES:
                    break
        except av.error.FFmpegError:
            return None  # said when the frames are read
        return round(frames * container.size / read) or None if read else None


def _kind(container: av.container.InputContainer) -> str:
    """The first of the names that FFmpeg has for the container format."""
    return str(container.format.name).split(",")[0]


def _missing_end(
    container: av.container.InputContainer, stream: av.VideoStream, end_s: dict[int, Fraction], slack_s: float
) -> _TruncatedError | None:
    """What to say if the file ends before its header says. end_s: of the packets that were read, by stream.

    Compares only what the file itself declares: where it does not, FFmpeg guesses `duration` and `start_time`.
    """
    kind = _kind(container)
    declared_s = _declared_end_s(kind, stream)
    read_s = float(end_s.get(stream.index, 0))
    if declared_s is None and kind in _DECLARES_ALL and not stream.codec_context.bit_rate:  # else guessed from that
        declared_s = (container.duration or 0) / av.time_base + min(0, (container.start_time or 0) / av.time_base)
        read_s = float(max(end_s.values(), default=Fraction(0)))
    if declared_s is None or declared_s - read_s <= slack_s:
        return None
    return _TruncatedError(f"the file ends at {read_s:.2f} of {declared_s:.2f} s")


def _declared_end_s(kind: str, stream: av.VideoStream) -> float | None:
    """When the stream ends according to the file's header, in the file's time; None if it does not say."""
    if kind in _DECLARES_STREAMS and stream.duration:
        return float((stream.start_time or 0) * stream.time_base) + float(stream.duration * stream.time_base)
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:00:10.010000000
    if len(parts) != 3:
        return None
    return sum(float(part) * scale for part, scale in zip(parts, (3600, 60, 1), strict=True))


def _start_s(first: av.VideoFrame) -> Fraction:
    return Fraction(first.pts or 0) * Fraction(first.time_base)


def _origin_s(
    first: av.VideoFrame,
    stream: av.VideoStream,
    container: av.container.InputContainer,
    shifts_s: Mapping[int, Fraction],
) -> Fraction:
    """The start of the video, or of the sound if that leads by more than encoder priming, as the clock shifts them."""
    video_s = _start_s(first) + shifts_s.get(stream.index, 0)
    starts = [
        Fraction(sound.start_time) * Fraction(sound.time_base) + shifts_s.get(sound.index, 0)
        for sound in container.streams.audio
        if sound.start_time is not None
    ]
    sound_s = min(starts, default=video_s)
    return sound_s if video_s - sound_s > _SOUND_LEAD_S else video_s


def _first_shifts(path: Path, max_px: int) -> Mapping[int, Fraction]:
    with _opened(path, max_px) as container:
        return first_shifts(container)
