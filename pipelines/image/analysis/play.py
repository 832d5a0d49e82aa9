"""Owns playing a clip through an image engine with given settings of reuse, and comparing two runs.

Independent of what is searched for and of how it is shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cache.features.frames import Action, ReuseSettings
from cache.features.price import ReuseCounts
from cache.features.windows import Window
from pipelines.core.controls import Control
from pipelines.core.types import Frame, Picture
from pipelines.image.engine import ImageEngine
from pipelines.image.reuse.stream import frame_reuse

Progress: TypeAlias = Callable[[str, int, int], None]
"""progress(what is being done, how much of it is done, how much there is)."""
Values: TypeAlias = Mapping[str, object]
"""Controls by name."""

Decision: TypeAlias = tuple[Action, tuple[Window, ...]]

_TIME_BASE = Fraction(1, 24)
_PRESET = "balanced"  # whose settings are replaced
_PEAK = 255.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """seconds: from the first push to the last pull; on a CPU processor time, which other programs hardly change.
    outputs: one for each picture. counts: what was done with them."""

    seconds: float
    outputs: Sequence[Picture]
    counts: ReuseCounts


def play(
    engine: ImageEngine,
    pictures: Sequence[Picture],
    control: Values,
    settings: ReuseSettings | None,
) -> Played:
    """Redraw a clip as fast as it goes, in a stream of its own. settings: None: without reuse."""
    clock = time.process_time if engine.core.model.device.type == "cpu" else time.perf_counter
    before = engine.core.reuse_presets
    if settings is not None:
        engine.core.reuse_presets = {**before, _PRESET: settings}
    values = {**control, "reuse": "off" if settings is None else _PRESET}
    try:
        with engine.open(Control.of(values)) as stream:
            outputs: list[Picture] = []
            start = clock()
            for seq, picture in enumerate(pictures):
                frame = framed(picture, seq)
                while not stream.push(frame):
                    engine.tick()
                    outputs += [f.image for f in stream.pull()]
                engine.tick()
                outputs += [f.image for f in stream.pull()]
            outputs += [f.image for f in stream.flush()]
            return Played(seconds=clock() - start, outputs=outputs, counts=stream.reuse_counts)
    finally:
        engine.core.reuse_presets = before


def decisions(engine: ImageEngine, pictures: Sequence[Picture], settings: ReuseSettings) -> tuple[Decision, ...]:
    """Return what `play` would do with each picture: settings that decide alike give the same run. Runs no network."""
    frames = frame_reuse(engine.core, settings)
    choices = (frames.choose(picture, can_store=not settings.exact) for picture in pictures)
    return tuple((choice.action, choice.windows) for choice in choices)


def framed(picture: npt.NDArray[np.uint8], seq: int) -> Frame:
    """Return a picture as the frame of that number."""
    return Frame(image=picture, pts=seq, time_base=_TIME_BASE, seq=seq)


def psnr_db(outputs: Sequence[Picture], reference: Sequence[Picture]) -> float:
    """10 log10(255^2 / mean squared error over all frames), uint8 [H, W, 3]; infinite where nothing differs."""
    errors = [
        float(np.mean((a.astype(np.int32) - b) ** 2, dtype=np.float64)) for a, b in zip(outputs, reference, strict=True)
    ]
    mean = sum(errors) / len(errors)
    return math.inf if mean == 0 else 10 * math.log10(_PEAK**2 / mean)
