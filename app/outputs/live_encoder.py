"""H.264 at a constant rate for a live stream, with a silent sound track, which some services require.

Owns the encoders of one open container. Independent of the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from app.media.colours import ToYuv
from app.media.picture import cover
from pipelines.core.types import Picture

_SOUND_RATE_HZ = 44100
_BT709_MATRIX = 1  # AVCOL_SPC_BT709, as codec contexts number it


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEncoding:
    """size: even (width, height) in pixels. rate: frames per second. video_kbps: constant bit rate in kbit/s."""

    size: tuple[int, int]
    rate: Fraction
    video_kbps: int
    silence: bool


class LiveEncoder:
    """Encodes pictures into `container`, an open PyAV output with nothing written yet."""

    def __init__(self, container: Any, encoding: LiveEncoding) -> None:
        self._container = container
        self._encoding = encoding
        self._to_yuv = ToYuv()
        self._video = self._add_video()
        self._sound: Any = None
        self._samples = 0
        if encoding.silence:
            self._sound = container.add_stream("aac", rate=_SOUND_RATE_HZ, layout="stereo", bit_rate=96_000)
        container.start_encoding()

    def write(self, picture: Picture, tick: int) -> None:
        """picture: of any size. tick: its time in units of 1 / rate, strictly increasing."""
        width, height = self._encoding.size
        if picture.shape[:2] != (height, width):
            picture = cover(picture, width, height)
        frame = self._to_yuv(picture)
        frame.pts, frame.time_base = tick, 1 / self._encoding.rate
        self._container.mux(self._video.encode(frame))
        if self._sound is not None:
            self._write_silence(int((tick + 1) / self._encoding.rate * _SOUND_RATE_HZ))

    def finish(self) -> None:
        """Flush the encoders."""
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._container.mux(self._sound.encode(None))

    def _write_silence(self, end: int) -> None:
        """Write silence up to sample `end`, at most a second at once."""
        while self._samples < end:
            count = min(end - self._samples, _SOUND_RATE_HZ)
            frame = av.AudioFrame.from_ndarray(np.zeros((2, count), np.float32), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = _SOUND_RATE_HZ, self._samples
            frame.time_base = Fraction(1, _SOUND_RATE_HZ)
            self._container.mux(self._sound.encode(frame))
            self._samples += count

    def _add_video(self) -> Any:
        encoding = self._encoding
        stream = self._container.add_stream("libx264", rate=encoding.rate)
        stream.width, stream.height = encoding.size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / encoding.rate
        context.bit_rate = encoding.video_kbps * 1000
        context.colorspace = _BT709_MATRIX
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        context.color_range = ColorRange.MPEG
        context.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "g": str(max(1, round(2 * encoding.rate))),  # services ask for a key frame every two seconds
            "sc_threshold": "0",
            "nal-hrd": "cbr",
            "maxrate": f"{encoding.video_kbps}k",
            "bufsize": f"{encoding.video_kbps}k",
        }
        return stream
