"""Owns what calibration shows to a model: prompts of its own world or general ones, and moving pictures.

Everything is drawn from a seeded generator. Independent of engines.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.core.types import Frame, Picture

PHOTOS = Path(__file__).resolve().parents[3] / "assets" / "samples" / "photos"
_SUBJECTS = (
    "a portrait of an old fisherman",
    "a woman in a red coat",
    "a crowd at a concert",
    "a cat on a sofa",
    "a galloping horse",
    "a parrot",
    "a bowl of fruit",
    "a steam locomotive",
    "a sports car",
    "a lighthouse",
    "a gothic cathedral",
    "a skyline",
    "a mountain lake",
    "a waterfall in a jungle",
    "a robot",
    "an astronaut",
)
_LOOKS = (
    "photograph, soft light",
    "oil painting",
    "watercolour",
    "pencil drawing",
    "anime",
    "neon at night",
    "black and white film",
    "3d render",
)


class Scenes:
    """Draws prompts and pictures. world: the content of a bundled model's world.json; None: general prompts."""

    def __init__(self, seed: int, world: Path | None) -> None:
        self.random = random.Random(seed)
        self._world: Mapping[str, Any] | None = None if world is None else json.loads(world.read_text())
        self._photos = sorted(PHOTOS.glob("*.jpg"))

    def prompt(self) -> str:
        """Return a prompt."""
        if self._world is None:
            return f"{self.random.choice(_SUBJECTS)}, {self.random.choice(_LOOKS)}"
        said = [f"a {self._word('subjects', 0)}"]
        said += [self._word("motions", 0)] if self._world.get("motions") and self.random.random() < 0.7 else []
        said += [self._word("places", -1)] if self.random.random() < 0.7 else []
        said += [self._word("lights", -1)] if self.random.random() < 0.5 else []
        said += [f", {self._word('styles', 0)}"] if self.random.random() < 0.5 else []
        return " ".join(said).replace(" ,", ",")

    def clip(self, frames: int, width: int, height: int) -> list[Frame]:
        """Return frames [height, width, 3] of a window that moves over an enlarged photograph."""
        photo = Image.open(self.random.choice(self._photos)).convert("RGB")
        zoom = self.random.uniform(1.1, 2.0)
        scale = zoom * max(width / photo.width, height / photo.height)
        large = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
        begin, end = ([self.random.random(), self.random.random()] for _ in range(2))
        picture = np.asarray(large)
        windows = [_window(picture, _between(begin, end, i / max(1, frames - 1)), width, height) for i in range(frames)]
        return [Frame(image=window, pts=i, time_base=Fraction(1, 24), seq=i) for i, window in enumerate(windows)]

    def _word(self, kind: str, which: int) -> str:
        """Return the first (0) or last (-1) phrase of an entry: "robot", "on the beach"."""
        assert self._world is not None
        return str(self.random.choice(self._world[kind])["words"][which])


def _between(begin: Sequence[float], end: Sequence[float], part: float) -> tuple[float, float]:
    first, second = ((1 - part) * a + part * b for a, b in zip(begin, end, strict=True))
    return first, second


def _window(picture: Picture, at: tuple[float, float], width: int, height: int) -> Picture:
    top, left = round(at[0] * (picture.shape[0] - height)), round(at[1] * (picture.shape[1] - width))
    return np.ascontiguousarray(picture[top : top + height, left : left + width])
