"""Owns the drift of an image stream over a minute: whether its colours wander off, with caches and without.

Frames are measured as they come and are not kept. The measures are bench.drift's (bench/video_quality.py) and contrast;
what the input itself does is measured alike, so that a clip whose colours change is not blamed on a cache. Independent
of caches and engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.picture_fidelity import luma
from bench.video_quality import REFERENCE_S, histogram_distance, picture_figures
from pipelines.core.types import Picture

END_S = 5
"""Length of the end that is compared with the first seconds."""
TOLERANCE = 0.02
"""How much further than its reference a run may drift: of histogram distance, and of slopes, in shares a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How a run's last 5 s differ from its seconds 2 to 5, and its trend.

    histogram: distance of colour histograms of 8 x 8 x 8 bins, the mean over the last 5 s (0 equal, 1 no colour
    shared). saturation, contrast: slopes of straight lines through all seconds from the second one on, as shares of the
    first seconds' value a minute; contrast is the standard deviation of luma.
    """

    seconds: int
    histogram: float
    saturation: float
    contrast: float


class DriftMeter:
    """Measures a stream frame by frame. fps: whole frames of a second."""

    def __init__(self, fps: int) -> None:
        if fps < 1:
            raise ValueError(f"fps={fps} must be at least 1")
        self._fps = fps
        self._histogram: list[torch.Tensor] = []
        self._saturation: list[float] = []
        self._contrast: list[float] = []
        self._waiting: list[Picture] = []

    @torch.no_grad()
    def add(self, frame: Picture) -> None:
        """Add the next frame, uint8 RGB [H, W, 3]. The pictures of one second are kept."""
        self._waiting.append(frame)
        if len(self._waiting) < self._fps:
            return
        pixels = torch.from_numpy(np.stack(self._waiting)).permute(0, 3, 1, 2).float() / 255
        figures = picture_figures(pixels)
        self._histogram.append(figures.histogram.mean(0))
        self._saturation.append(float(figures.saturation.mean()))
        self._contrast.append(float(np.mean([luma(picture).std() for picture in self._waiting])))
        self._waiting.clear()

    def drift(self) -> Drift:
        """Of all whole seconds. Raises ValueError below 8: there must be an end besides the first 5."""
        seconds = len(self._saturation)
        if seconds < REFERENCE_S[1] + 3:
            raise ValueError(f"{seconds} whole seconds are too few for drift: give at least {REFERENCE_S[1] + 3}")
        histogram = torch.stack(self._histogram)
        first = histogram[slice(*REFERENCE_S)].mean(0, keepdim=True)
        return Drift(
            seconds=seconds,
            histogram=float(histogram_distance(histogram[-END_S:], first).mean()),
            saturation=slope_per_minute(np.array(self._saturation)),
            contrast=slope_per_minute(np.array(self._contrast)),
        )


def slope_per_minute(values: npt.NDArray[np.float64]) -> float:
    """Slope of the least-squares line through a value per second, from second 2 on, as a share of the mean of seconds
    2 to 5, a minute. 0 if that mean is 0.
    """
    start = float(values[slice(*REFERENCE_S)].mean())
    kept = values[REFERENCE_S[0] :]
    slope = float(np.polyfit(np.arange(len(kept)), kept, 1)[0])
    return 60 * slope / start if start else 0.0


def measure_drift(frames: Iterable[Picture], fps: int) -> Drift:
    """Drift of frames in order, uint8 RGB [H, W, 3]."""
    meter = DriftMeter(fps)
    for frame in frames:
        meter.add(frame)
    return meter.drift()


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftComparison:
    """A run with a cache beside the same without, and beside their input."""

    cached: Drift
    uncached: Drift
    inputs: Drift

    @property
    def excess(self) -> dict[str, float]:
        """By how much more the cached run drifts, by measure; at most 0 if it drifts less."""
        return {
            "histogram": self.cached.histogram - self.uncached.histogram,
            "saturation": abs(self.cached.saturation) - abs(self.uncached.saturation),
            "contrast": abs(self.cached.contrast) - abs(self.uncached.contrast),
        }

    @property
    def no_more(self) -> bool:
        """Whether the cached run drifts no more than the other, within TOLERANCE."""
        return all(value <= TOLERANCE for value in self.excess.values())

    def record(self) -> dict[str, Any]:
        """For JSON."""
        parts: dict[str, Any] = {
            name: {key: round(value, 4) for key, value in asdict(drift).items()}
            for name, drift in (("cached", self.cached), ("uncached", self.uncached), ("inputs", self.inputs))
        }
        return {
            **parts,
            "excess": {name: round(value, 4) for name, value in self.excess.items()},
            "tolerance": TOLERANCE,
            "no_more_than_uncached": self.no_more,
        }
