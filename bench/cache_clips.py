"""Owns the clips on which bench.cache measures caches: one table of what a camera may show, from still to all moving.

Made from assets/samples, the places that train/ paints, and figures drawn here, at any size and length, the same for
the same seed. Where not said otherwise a clip has a camera's noise: a live picture never repeats exactly.
`clip("figure", 48, (192, 192))` returns a list of uint8 RGB [H, W, 3]. Independent of engines, caches and measures.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

import numpy as np

from bench.cache_figures import draw_talking_head, draw_walker, expression
from bench.cache_pictures import (
    CLEAN,
    PANORAMAS,
    Levels,
    Sensor,
    Size,
    centred,
    covering,
    painted_place,
    panorama,
    photo,
    window,
)
from pipelines.core.types import Picture

CUT_FRAMES = 12
"""Length of a shot of `cuts`."""
SOURCE_FPS, STREAM_FPS = 24, 60
"""Rates of the film of `repeats` and of the stream that it is shown in."""
CAMERA_FRAMES, CAMERA_CUTS = 144, (54, 102)
"""Of assets/samples/camera.mp4: its frames, and the first ones of its second and third shot."""
PAUSE_FRAME = 8
"""The frame at which `paused` stops."""
PAN_SPEED, FAST_SPEED = 0.7 / 192, 30 / 192
"""Picture widths per frame."""
STILL_PHOTOS = (14, 46, 20, 37)
GROUND_PHOTOS = (46, 21, 16, 58)
NOISY = Sensor()
FLICKERING = Sensor(flicker=0.02)

Scenes = Iterator[Levels]


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """What a clip is made for. size: (width, height) in px."""

    frames: int
    size: Size
    seed: int

    def choose(self, choices: tuple[int, ...]) -> int:
        """One of them for this seed."""
        return choices[self.seed % len(choices)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A row of the table. scenes: yields at least a take's frames, as they are before the sensor; cuts: frames that
    have nothing to do with the one before, of a clip of that many frames; repeats: frames that equal the one before
    exactly.
    """

    name: str
    purpose: str
    scenes: Callable[[Take], Scenes]
    sensor: Sensor = NOISY
    cuts: Callable[[int], list[int]] = lambda frames: []
    repeats: Callable[[int], list[int]] = lambda frames: []

    def make(self, take: Take) -> list[Picture]:
        """The frames, uint8 RGB [H, W, 3]."""
        random = np.random.default_rng([take.seed, zlib.crc32(self.name.encode())])
        scenes = islice(self.scenes(take), take.frames)
        return [self.sensor.capture(scene, number, random) for number, scene in enumerate(scenes)]


def still(take: Take) -> Scenes:
    """A photograph, again and again."""
    scene = centred(photo(take.choose(STILL_PHOTOS)), take.size, zoom=1.05)
    while True:
        yield scene


def painted(take: Take) -> Scenes:
    """A painted place, again and again."""
    from train.vocabulary_world import PLACES

    scene = painted_place(take.seed % len(PLACES), take.size, take.seed)
    while True:
        yield scene


def figure(take: Take) -> Scenes:
    """A person walks up and down in a photograph."""
    ground = centred(photo(take.choose(GROUND_PHOTOS)), take.size)
    for frame in range(take.frames):
        yield draw_walker(ground, frame, 7 * take.seed)


def talking_head(take: Take) -> Scenes:
    """A portrait speaks: lips and eyelids move, the head a little."""
    for frame in range(take.frames):
        yield draw_talking_head(take.size, expression(frame, 11 * take.seed))


def _around(take: Take, speed: float, rise: float, *, zoom: float) -> Scenes:
    """The camera turns through a panorama without end. speed: widths per frame; rise: how far it moves up and down, as
    a share of what is left above and below.
    """
    width, height = take.size
    ring = panorama(take.choose(PANORAMAS))
    tile = covering(ring, (round(ring.shape[1] * zoom * height / ring.shape[0]), round(height * zoom)))
    around_px = tile.shape[1]
    # More than once around, so that a window never meets an edge.
    texture = np.concatenate([tile] * (2 + width // around_px), axis=1)
    spare = texture.shape[0] - height
    for frame in range(take.frames):
        left = (frame * speed * width + 97.3 * take.seed) % around_px
        top = spare / 2 * (1 + rise * math.sin(2 * math.pi * frame / 70))
        yield window(texture, left, top, take.size)


def pan(take: Take) -> Scenes:
    """0.7 px a frame at a width of 192 px."""
    return _around(take, PAN_SPEED, 0.4, zoom=1.2)


def fast(take: Take) -> Scenes:
    """30 px a frame at a width of 192 px, with a shutter too short to blur."""
    return _around(take, FAST_SPEED, 0.9, zoom=1.4)


SHOTS: tuple[Callable[[Take], Scenes], ...] = (pan, still, figure, painted, talking_head, pan, painted)


def cuts(take: Take) -> Scenes:
    """Shots of other clips, twelve frames each."""
    for shot in range(math.ceil(take.frames / CUT_FRAMES)):
        seed = take.seed + shot
        yield from islice(SHOTS[shot % len(SHOTS)](Take(frames=CUT_FRAMES, size=take.size, seed=seed)), CUT_FRAMES)


@functools.lru_cache(maxsize=2)
def _camera_pictures(size: Size) -> tuple[Picture, ...]:
    from app.measure.camera import camera_pictures

    return tuple(camera_pictures(*size))


def camera_frame(frame: int) -> int:
    """Which frame of the file the clip shows: forwards and backwards in turn, so that its end is no cut."""
    there_and_back = 2 * CAMERA_FRAMES - 2
    at = frame % there_and_back
    return min(at, there_and_back - at)


def camera(take: Take) -> Scenes:
    """assets/samples/camera.mp4; no seed changes it."""
    pictures = _camera_pictures(take.size)
    for frame in range(take.frames):
        yield pictures[camera_frame(frame)].astype(np.float32)


def source_frame(frame: int) -> int:
    """Which frame of the film the stream's frame shows: each is shown three times and twice in turn."""
    return frame * SOURCE_FPS // STREAM_FPS


def repeats(take: Take) -> Scenes:
    """The camera's clip as film in a faster stream."""
    film = list(camera(Take(frames=source_frame(take.frames - 1) + 1, size=take.size, seed=take.seed)))
    for frame in range(take.frames):
        yield film[source_frame(frame)]


def paused(take: Take) -> Scenes:
    """The camera's clip, stopped."""
    film = list(camera(Take(frames=min(PAUSE_FRAME + 1, take.frames), size=take.size, seed=take.seed)))
    for frame in range(take.frames):
        yield film[min(frame, len(film) - 1)]


def _cut_frames(frames: int) -> list[int]:
    return list(range(CUT_FRAMES, frames, CUT_FRAMES))


def _camera_shot(frame: int) -> int:
    return sum(camera_frame(frame) >= cut for cut in CAMERA_CUTS)


def _camera_cuts(frames: int) -> list[int]:
    return [frame for frame in range(1, frames) if _camera_shot(frame) != _camera_shot(frame - 1)]


def _film_cuts(frames: int) -> list[int]:
    shots = [_camera_shot(source_frame(frame)) for frame in range(frames)]
    return [frame for frame in range(1, frames) if shots[frame] != shots[frame - 1]]


def _film_repeats(frames: int) -> list[int]:
    return [frame for frame in range(1, frames) if source_frame(frame) == source_frame(frame - 1)]


def _pause_repeats(frames: int) -> list[int]:
    return list(range(PAUSE_FRAME + 1, frames))


CLIPS: Mapping[str, Clip] = MappingProxyType(
    {
        row.name: row
        for row in (
            Clip(name="still", purpose="still camera: only the sensor's noise changes", scenes=still),
            Clip(
                name="flicker",
                purpose="still camera whose exposure varies slowly by 2 %, as under bad light",
                scenes=still,
                sensor=FLICKERING,
            ),
            Clip(name="figure", purpose="a person walks before a still ground", scenes=figure),
            Clip(name="talking-head", purpose="a face speaks and blinks before a still ground", scenes=talking_head),
            Clip(name="pan", purpose="slow pan over a panorama, by fractions of a pixel", scenes=pan),
            Clip(name="fast", purpose="everything moves by tens of pixels a frame", scenes=fast),
            Clip(name="cuts", purpose="a hard cut every 12 frames", scenes=cuts, cuts=_cut_frames),
            Clip(
                name="repeats",
                purpose="film of 24 FPS in a stream of 60: frames repeat exactly, three and two in turn",
                scenes=repeats,
                sensor=CLEAN,
                cuts=_film_cuts,
                repeats=_film_repeats,
            ),
            Clip(
                name="paused",
                purpose="a clip that plays, then stops: every frame repeats exactly",
                scenes=paused,
                sensor=CLEAN,
                repeats=_pause_repeats,
            ),
            Clip(
                name="camera",
                purpose="assets/samples/camera.mp4: as from a hand-held camera, two cuts, H.264",
                scenes=camera,
                sensor=CLEAN,
                cuts=_camera_cuts,
            ),
        )
    }
)
"""By name."""


def clip(name: str, frames: int, size: Size, seed: int = 0) -> list[Picture]:
    """`frames` pictures uint8 RGB [H, W, 3] of a clip of CLIPS. size: (width, height), at least 16 px each. The same
    for the same arguments. Raises ValueError for other names, frames or sizes.
    """
    if name not in CLIPS:
        raise ValueError(f"there is no clip {name!r}; choose from {', '.join(CLIPS)}")
    if frames < 1 or min(size) < 16 or seed < 0:
        raise ValueError(f"frames={frames}, size={size}, seed={seed}: give at least 1 frame of 16 px and a seed from 0")
    return CLIPS[name].make(Take(frames=frames, size=size, seed=seed))
