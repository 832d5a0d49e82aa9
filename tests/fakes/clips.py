"""Small real media files for tests: video with sound, made with PyAV.

Frame k of a clip has the grey value `grey(k)`, which identifies the source frame of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.core.types import Picture

SOUND_RATE = 48000


def grey(index: int) -> int:
    """Return 30, 35, ... 225, then 30 again: 40 values that stay distinguishable after encoding."""
    return 30 + 5 * (index % 40)


def picture(index: int, size: tuple[int, int] = (64, 48)) -> Picture:
    """Return a picture [H, W, 3] uint8 filled with `grey(index)`."""
    return np.full((size[1], size[0], 3), grey(index), np.uint8)


def make_clip(
    path: Path,
    *,
    frames: int = 30,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (64, 48),
    sound: str = "aac",
    sound_s: float | None = None,
    pts: Sequence[int] | None = None,
    rotation: float | None = None,
    options: dict[str, str] | None = None,
    draw: Callable[[int, tuple[int, int]], Picture] = picture,
    tags: dict[str, int] | None = None,
    pixel_aspect: Fraction | None = None,
    encoder: str = "libx264",
) -> Path:
    """Write a clip. sound: an audio encoder, "" for none. pts: in ms, for a variable frame rate. tags: colour
    fields."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(encoder, rate=rate)
        video.width, video.height = size
        video.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        if encoder == "libx264":
            video.codec_context.options = {"preset": "ultrafast", "g": "10", "crf": "10"}
        if pts is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        if pixel_aspect is not None:
            video.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            video.set_display_rotation(rotation)
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        audio = container.add_stream(sound, rate=SOUND_RATE) if sound else None
        if audio is not None:
            audio.codec_context.layout = "mono"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(index, size), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            seconds = float(frames / rate) if sound_s is None else sound_s
            container.mux(audio.encode(_tone(seconds)))
            container.mux(audio.encode(None))
    return path


def _tone(seconds: float) -> av.AudioFrame:
    time_s = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    wave = (np.sin(2 * np.pi * 440 * time_s) * 8000).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
    frame.sample_rate, frame.pts = SOUND_RATE, 0
    return frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a player decodes. duration_s: of the file. greys: mean value of each picture. sound_s: length of the
    sound."""

    size: tuple[int, int]
    times_s: list[float]
    greys: list[float]
    duration_s: float
    sound_codec: str
    sound_s: float

    @property
    def indices(self) -> list[int]:
        """Source frame (modulo 40) of each picture, for an engine that inverts."""
        return [round((255 - value - 30) / 5) for value in self.greys]


def play(path: Path) -> Played:
    """Decode everything."""
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
        duration_s = (container.duration or 0) / av.time_base
        codec = container.streams.audio[0].codec_context.name if container.streams.audio else ""
    sound_s = 0.0
    if codec:
        with av.open(str(path)) as container:
            sound_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return Played(
        size=(pictures[0].width, pictures[0].height),
        times_s=[float(frame.pts * frame.time_base) for frame in pictures],
        greys=[float(frame.to_ndarray(format="rgb24").mean()) for frame in pictures],
        duration_s=duration_s,
        sound_codec=codec,
        sound_s=sound_s,
    )
