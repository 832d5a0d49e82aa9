"""Owns the raw material of bench.cache_clips: photographs, panoramas and painted places at any size, windows onto them
at sub-pixel positions, and a camera's sensor.

Pictures are float32 [H, W, 3] RGB in levels of 0..255; sizes are (width, height) in pixels. Independent of clips and
measures.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.core.types import Picture

Levels: TypeAlias = npt.NDArray[np.float32]
Size: TypeAlias = tuple[int, int]

PHOTOS = Path(__file__).parents[1] / "assets" / "samples" / "photos"
OPTICS_SIGMA_PX = 0.5
"""Blur of a lens: keeps sub-pixel motion from changing how sharp a picture is."""
PANORAMAS = (50, 55, 45)
"""The first of five views around, of train.photos.test_pieces: a garden, a car park, a room."""
_VIEWS, _PITCH_RAD, _FIELD_RAD = 5, math.radians(-6), math.radians(70)
_HALF_STRIP_RAD = math.radians(34)
_RISE = (0.45, -0.70)
"""Heights on the cylinder of radius 1 that every view shows, top and bottom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """Noise of a camera, independent by pixel, channel and frame.

    read_sigma: standard deviation in levels at black. shot: variance in levels per level of signal (photons arrive at
    random, so bright pixels are noisier). flicker: amplitude of the exposure's slow variation; period_frames: its
    length.
    """

    read_sigma: float = 2.0
    shot: float = 0.01
    flicker: float = 0.0
    period_frames: float = 60.0

    def __post_init__(self) -> None:
        if min(self.read_sigma, self.shot, self.flicker) < 0 or self.period_frames <= 0:
            raise ValueError(f"{self}: noise and flicker must be at least 0, the period above 0")

    def exposure(self, frame: int) -> float:
        """Brightness factor of a frame: two slow sines that never quite repeat."""
        turn = 2 * math.pi * frame / self.period_frames
        return 1 + self.flicker * (0.7 * math.sin(turn) + 0.3 * math.sin(math.sqrt(5) * turn))

    def capture(self, levels: Levels, frame: int, random: np.random.Generator) -> Picture:
        """uint8 [H, W, 3]: what the camera hands on of a scene."""
        signal = levels * np.float32(self.exposure(frame))
        sigma = np.sqrt(self.read_sigma**2 + self.shot * np.maximum(signal, 0))
        noisy = signal + sigma * random.standard_normal(signal.shape, dtype=np.float32)
        return np.asarray(noisy.round().clip(0, 255), dtype=np.uint8)


CLEAN = Sensor(read_sigma=0.0, shot=0.0)


def photo(number: int) -> Levels:
    """assets/samples/photos/NUMBER.jpg, [256, 256, 3]."""
    file = PHOTOS / f"{number:02d}.jpg"
    picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(f"{file} is missing; it belongs to the checkout")
    return np.ascontiguousarray(picture[..., ::-1], dtype=np.float32)


def resized(picture: Levels, width: int, height: int) -> Levels:
    """By area averaging (down) or bicubic interpolation (up)."""
    how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), dtype=np.float32)


def covering(picture: Levels, size: Size, zoom: float = 1.0) -> Levels:
    """The picture resized to cover `zoom` times the size in both directions, and softened as by a lens."""
    height, width = picture.shape[:2]
    scale = zoom * max(size[0] / width, size[1] / height)
    fitted = resized(picture, max(size[0], round(width * scale)), max(size[1], round(height * scale)))
    return np.asarray(cv2.GaussianBlur(fitted, (0, 0), OPTICS_SIGMA_PX), dtype=np.float32)


def window(picture: Levels, left: float, top: float, size: Size) -> Levels:
    """The part of that size whose corner is at (left, top), any fractions of a pixel; beyond its edges the picture is
    mirrored. Bicubic.
    """
    matrix = np.array([[1, 0, left], [0, 1, top]], dtype=np.float64)
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(picture, matrix, size, flags=how, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(seen, dtype=np.float32).clip(0, 255)


def centred(picture: Levels, size: Size, zoom: float = 1.0) -> Levels:
    """The middle of the picture at that size, `zoom` times larger than needed to cover it."""
    fitted = covering(picture, size, zoom)
    left, top = (fitted.shape[1] - size[0]) // 2, (fitted.shape[0] - size[1]) // 2
    return np.ascontiguousarray(fitted[top : top + size[1], left : left + size[0]])


@functools.lru_cache(maxsize=len(PANORAMAS))
def panorama(first: int) -> Levels:
    """[210, 1085, 3]: five views joined on a cylinder; its right edge continues at its left. first: of PANORAMAS.

    The views are pinhole pictures, 70 degrees wide, every 72 degrees, 6 degrees below the horizon; two degrees are
    taken off each side of a view, so that the joints are not smeared.
    """
    reach = math.tan(_FIELD_RAD / 2)
    per_unit = 256 / (2 * reach)
    columns, rows = round(2 * _HALF_STRIP_RAD * per_unit), round((_RISE[0] - _RISE[1]) * per_unit)
    angle = (np.arange(columns) + 0.5) / columns * (2 * _HALF_STRIP_RAD) - _HALF_STRIP_RAD
    rise = _RISE[0] + (np.arange(rows)[:, None] + 0.5) / rows * (_RISE[1] - _RISE[0])
    depth = np.cos(angle) * math.cos(_PITCH_RAD) + rise * math.sin(_PITCH_RAD)
    across = np.sin(angle) / depth
    up = (rise * math.cos(_PITCH_RAD) - np.cos(angle) * math.sin(_PITCH_RAD)) / depth
    map_x, map_y = ((1 + across / reach) * 128 - 0.5, (1 - up / reach) * 128 - 0.5)
    maps = (map_x.astype(np.float32), map_y.astype(np.float32))
    strips = [
        cv2.remap(photo(first + view), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for view in range(_VIEWS)
    ]
    joined = np.concatenate(strips, axis=1).clip(0, 255).astype(np.float32)
    joined.setflags(write=False)
    return joined


def painted_place(place: int, size: Size, seed: int) -> Levels:
    """A place of train.vocabulary_world.PLACES, painted by train/, its middle at that size."""
    import torch

    from train.world import paint_places

    side = max(size)
    picture, _ = paint_places(torch.tensor([place]), torch.Generator().manual_seed(seed), side)
    levels = np.ascontiguousarray((picture[0].clamp(0, 1) * 255).permute(1, 2, 0).numpy(), dtype=np.float32)
    return centred(levels, size)
