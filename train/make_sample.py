"""Owns assets/samples/camera.mp4: a clip like a hand-held camera's, with a synthesised tune.

python -m train.make_sample [FOLDER]    # FOLDER of unpacked packages, by default train/data/packages (train.collect)

Three held-out photographs in motion, two cuts, 6 s at 24 FPS. Not used in training.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from pipelines.core.types import Picture

from .photo_table import PHOTOS, Photo
from .photos import read_picture

WIDTH_PX, HEIGHT_PX, FPS, FRAMES = 384, 288, 24, 144
SAMPLE_RATE_HZ = 48000
AUDIO_BLOCK_SAMPLES = 1024
TEMPO_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One camera move over a picture. start, end: (centre x, centre y, window width) as shares of the picture's width
    (x, width) and height (y); shake_px: amplitude of the hand's movement in output pixels."""

    title: str
    frames: int
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    shake_px: float


SHOTS = (
    Shot(title="Grace Hopper", frames=54, start=(0.50, 0.45, 0.86), end=(0.46, 0.36, 0.60), shake_px=3.0),
    Shot(title="friends", frames=48, start=(0.36, 0.24, 0.62), end=(0.44, 0.46, 0.62), shake_px=3.5),
    Shot(title="Male Moose", frames=42, start=(0.36, 0.50, 0.66), end=(0.60, 0.44, 0.56), shake_px=4.0),
)


def find(title: str) -> Photo:
    """The held-out picture with that title."""
    return next(photo for photo in PHOTOS if photo.title == title and photo.crops)


def shake(frame: int, phase: random.Random) -> tuple[float, float]:
    """Horizontal and vertical hand movement in -1..1: a sum of slow and quick sines with random phases."""
    t = frame / FPS
    turns = [phase.random() * 2 * math.pi for _ in range(6)]
    waves = ((0.6, 0.9), (0.3, 2.3), (0.1, 6.1))
    x = sum(a * math.sin(2 * math.pi * f * t + turns[i]) for i, (a, f) in enumerate(waves))
    y = sum(a * math.sin(2 * math.pi * f * 1.13 * t + turns[i + 3]) for i, (a, f) in enumerate(waves))
    return x, y


def shot_frames(picture: Picture, shot: Shot) -> Iterator[Picture]:
    """uint8 RGB [288, 384, 3] frames of one shot, easing from its start window to its end window."""
    height, width = picture.shape[:2]
    window_px = min(shot.start[2], shot.end[2]) * width
    if window_px > 2 * WIDTH_PX:  # Average first, so that the warp below does not alias.
        scale = 1.5 * WIDTH_PX / window_px
        picture = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        height, width = picture.shape[:2]
    for i in range(shot.frames):
        ease = (1 - math.cos(math.pi * i / (shot.frames - 1))) / 2
        x, y, share = (a + (b - a) * ease for a, b in zip(shot.start, shot.end, strict=True))
        dx, dy = shake(i, random.Random(shot.title))
        scale = share * width / WIDTH_PX
        left = x * width + (shot.shake_px * dx - WIDTH_PX / 2) * scale
        top = y * height + (shot.shake_px * dy - HEIGHT_PX / 2) * scale
        matrix = np.array([[scale, 0, left], [0, scale, top]], np.float32)
        flags = (cv2.INTER_LINEAR if scale > 1 else cv2.INTER_CUBIC) | cv2.WARP_INVERSE_MAP
        frame = cv2.warpAffine(picture, matrix, (WIDTH_PX, HEIGHT_PX), flags=flags, borderMode=cv2.BORDER_REFLECT)
        yield np.asarray(frame, np.uint8)


def tune() -> npt.NDArray[np.float32]:
    """Mono float32 [288000] in -1..1, 6 s: a pentatonic melody of plucked tones over two held bass notes."""
    total = FRAMES * SAMPLE_RATE_HZ // FPS
    sound = np.zeros(total + SAMPLE_RATE_HZ, np.float32)
    melody = (0, 4, 7, 9, 12, 9, 7, 4, 2, 4, 7, 12, 14, 12, 9, 7, 0, 4, 7, 9, 12, 14, 12, 7)
    for i, step in enumerate(melody):
        t = np.arange(int(0.7 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        pitch_hz = 261.63 * 2 ** (step / 12)
        tone = sum(np.sin(2 * np.pi * pitch_hz * k * t) * np.exp(-t * (4 + 2 * k)) / k**1.5 for k in (1, 2, 3))
        start = int(i * TEMPO_S * SAMPLE_RATE_HZ)
        sound[start : start + len(t)] += (0.22 * tone * np.minimum(1, t * 200)).astype(np.float32)
    t = np.arange(total) / SAMPLE_RATE_HZ
    bass_hz = np.where(t % 3 < 2, 130.81, 196.0)
    sound[:total] += (0.08 * np.sin(2 * np.pi * np.cumsum(bass_hz) / SAMPLE_RATE_HZ)).astype(np.float32)
    fade = np.minimum(1, np.minimum(t / 0.05, (total / SAMPLE_RATE_HZ - t) / 0.4))
    return np.asarray(np.tanh(sound[:total]) * fade, np.float32)


def write_video(path: Path, frames: list[Picture], sound: npt.NDArray[np.float32]) -> None:
    """Write H.264 (yuv420p, a key frame every second) and AAC in MP4, playable while it loads."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "slow", "threads": "1"})
        video.width, video.height, video.pix_fmt, video.gop_size = WIDTH_PX, HEIGHT_PX, "yuv420p", FPS
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        audio.bit_rate = 96000
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        for start in range(0, len(sound), AUDIO_BLOCK_SAMPLES):
            block = av.AudioFrame.from_ndarray(sound[None, start : start + AUDIO_BLOCK_SAMPLES], "fltp", "mono")
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE_HZ, start, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(audio.encode(block))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def main() -> None:
    """Write assets/samples/camera.mp4."""
    project = Path(__file__).parent.parent
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else project / "train" / "data" / "packages"
    frames = [frame for shot in SHOTS for frame in shot_frames(read_picture(root, find(shot.title)), shot)]
    assert len(frames) == FRAMES, f"the shots have {len(frames)} frames, not {FRAMES}"
    target = project / "assets" / "samples" / "camera.mp4"
    write_video(target, frames, tune())
    print(f"{len(frames)} frames, {target.stat().st_size / 2**20:.2f} MiB: {target}")


if __name__ == "__main__":
    main()
