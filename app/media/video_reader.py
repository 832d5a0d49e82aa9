"""Decodes the frames of a video file: upright, with the right colours and timestamps. Does not decode sound.

Frames keep the file's time base; pts are relative to `SourceInfo.origin_s`, the start of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from pipelines.core.errors import InputError

from .alpha import decoder_of, over_black
from .source import MAX_PICTURE_PIXELS, SourceBrokenError, SourceFrame, SourceInfo, check_pixels

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_HD_ROWS = 720  # untagged video is BT.709 from here on, BT.601 below: what players assume
_SOUND_LEAD_S = Fraction(1, 20)  # sound that leads the picture by less than this is encoder priming, and is cut
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_FALLBACK_RATE = Fraction(25)
_MISSING_S = 0.5  # a file that ends this much before its declared end is truncated


class VideoReader:
    """A source of the frames of a file's first video stream (other than cover art)."""

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
            self._time_base = Fraction(stream.time_base)
            self._rate = Fraction(stream.average_rate or stream.guessed_rate or _FALLBACK_RATE)
            self._info = SourceInfo(
                name=str(path),
                size=_upright_size(first),
                pixel_aspect=_pixel_aspect(stream, first),
                frame_rate=self._rate,
                time_base=self._time_base,
                frames=_expected_frames(stream, container, self._rate),
                origin_s=_origin_s(first, container),
                has_sound=bool(container.streams.audio),
            )

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self, start: int = 0) -> Iterator[SourceFrame]:
        """Frames before `start` are decoded and discarded: the only way that is exact for every codec."""
        origin = round(self._info.origin_s / self._time_base)
        usual = max(1, round(1 / self._rate / self._time_base))
        reformatter = VideoReformatter()
        previous: tuple[int, int] | None = None
        index = 0
        with _opened(self._path, self._max_px) as container:
            stream = _video_stream(container, self._path)
            stream.thread_type = "AUTO"
            decoded = self._decoded(container, stream, decoder_of(stream, self._max_px))
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
                pts = max(earliest, frame.pts - origin if frame.pts is not None else expected)
                previous = (pts, frame.duration or usual)
                if index >= start:
                    check_pixels(self._info.name, frame.width, frame.height, self._max_px)
                    yield SourceFrame(index=index, image=_rgb(frame, reformatter), pts=pts, duration=previous[1])
                index += 1

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream, decoder: av.VideoCodecContext
    ) -> Iterator[av.VideoFrame]:
        """Frames in display order. Raises FFmpegError for corrupt data and _TruncatedError for a truncated file, both
        only after every frame before that point was yielded."""
        end_s = Fraction(0)
        failure: Exception | None = None
        resyncs = container.format.name == "mpegts"  # there, a corrupt packet does not end the stream
        try:
            for packet in container.demux():
                if packet.is_corrupt and not resyncs:
                    raise _TruncatedError("the file ends in the middle of a frame")
                if packet.stream.index == stream.index and packet.size:
                    if packet.pts is not None:
                        end_s = max(end_s, (packet.pts + (packet.duration or 0)) * self._time_base)
                    yield from decoder.decode(packet)
        except (av.error.FFmpegError, _TruncatedError) as error:
            failure = error
        yield from _drained(decoder)
        declared_s = _declared_end_s(stream)
        if failure is None and declared_s is not None and declared_s - float(end_s) > _MISSING_S:
            failure = _TruncatedError(f"the file ends at {float(end_s):.2f} of {declared_s:.2f} s")
        if failure is not None:
            raise failure


class _TruncatedError(Exception):
    """The file is truncated."""


def _reason(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _drained(decoder: av.VideoCodecContext) -> Iterator[av.VideoFrame]:
    try:
        yield from decoder.decode(None)
    except av.error.FFmpegError:
        return  # nothing may be left to drain after corrupt data, which the caller reports


def _opened(path: Path, max_px: int) -> av.container.InputContainer:
    """Opening decodes a frame of some formats: within the same limit."""
    try:
        return av.open(str(path), options={"max_pixels": str(max_px)})
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) is not a video that can be read: {_reason(error)}.",
            "If it was copied or downloaded, it may be truncated; else convert it to MP4 first.",
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    found = [s for s in container.streams.video if not s.disposition & cover and s.codec_context is not None]
    moving = [stream for stream in found if stream.frames != 1]  # an AVIF sequence begins with a still picture
    if found:
        return (moving or found)[0]
    sound = "only sound" if container.streams.audio else "no video"
    raise InputError(f"{path} has {sound}.", "Give a video file or a folder of pictures.")


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


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    turned = round(frame.rotation / 90) % 2 == 1
    return (frame.height, frame.width) if turned else (frame.width, frame.height)


def _pixel_aspect(stream: av.VideoStream, frame: av.VideoFrame) -> float:
    aspect = float(stream.sample_aspect_ratio or 0) or 1.0
    return 1 / aspect if round(frame.rotation / 90) % 2 == 1 else aspect


def _expected_frames(stream: av.VideoStream, container: av.container.InputContainer, rate: Fraction) -> int | None:
    if stream.frames:
        return int(stream.frames)
    seconds = _declared_end_s(stream) or (container.duration or 0) / av.time_base
    return round(seconds * rate) or None


def _declared_end_s(stream: av.VideoStream) -> float | None:
    """When the stream ends according to the file's header, in the file's time; None if unknown."""
    start_s = float((stream.start_time or 0) * stream.time_base)
    if stream.duration:
        return start_s + float(stream.duration * stream.time_base)
    written = stream.metadata.get("DURATION", "")  # Matroska: 00:00:10.010000000
    parts = written.split(":")
    if len(parts) != 3:
        return None
    return sum(float(part) * scale for part, scale in zip(parts, (3600, 60, 1), strict=True))


def _origin_s(first: av.VideoFrame, container: av.container.InputContainer) -> Fraction:
    """The start of the video, or of the sound if that leads by more than encoder priming."""
    video_s = Fraction(first.pts or 0) * Fraction(first.time_base)
    starts = [
        Fraction(stream.start_time) * Fraction(stream.time_base)
        for stream in container.streams.audio
        if stream.start_time is not None
    ]
    sound_s = min(starts, default=video_s)
    return sound_s if video_s - sound_s > _SOUND_LEAD_S else video_s


def _rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8 full-range RGB, upright, black where transparent.

    Untagged colours: BT.709 from 720 rows on, else BT.601.
    """
    untagged_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_ROWS
    has_alpha = any(component.is_alpha for component in frame.format.components) or frame.format.has_palette
    converted = reformatter.reformat(
        frame,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=Colorspace.ITU709 if untagged_hd else None,
        interpolation=_SCALER,
    )
    image = over_black(np.asarray(converted.to_ndarray(), np.uint8)) if has_alpha else converted.to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy counts them
    return np.ascontiguousarray(np.rot90(image, quarter_turns))
