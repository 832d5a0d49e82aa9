"""Owns what reuse saved and what it cost: counts of frames, and the error that a whole pass reveals.

Works on arrays and integers. Independent of decisions and networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .frames import Action
from .windows import Mask

_SMOOTHING = 0.25  # weight of the newest measurement
_PEAK = 255.0
_NONE_DB = 99.0  # of equal pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseCounts:
    """Frames of a stream by what was done with them. cells: share of the picture's cells that each computed, summed."""

    full: int = 0
    store: int = 0
    windows: int = 0
    hold: int = 0
    cells: float = 0.0

    def with_frame(self, action: Action, cells: float) -> ReuseCounts:
        """Return the counts with one frame more, of which this share of the cells was computed."""
        name = action.value
        return replace(self, **{name: getattr(self, name) + 1, "cells": self.cells + cells})

    @property
    def frames(self) -> int:
        """All frames."""
        return self.full + self.store + self.windows + self.hold

    @property
    def hit_rate(self) -> float:
        """Share of the frames that took over anything."""
        return (self.windows + self.hold) / self.frames if self.frames else 0.0

    @property
    def computed(self) -> float:
        """Share of all cells that were computed."""
        return self.cells / self.frames if self.frames else 1.0


class ReusePrice:
    """Compares what was shown where nothing moved with the next picture that was computed as a whole."""

    def __init__(self) -> None:
        self._last: npt.NDArray[np.uint8] | None = None
        self._error: float | None = None

    @property
    def psnr_db(self) -> float | None:
        """Of what was shown, smoothed over whole pictures; at most 99. None before the first."""
        if self._error is None:
            return None
        return _NONE_DB if self._error <= 0 else min(_NONE_DB, float(10 * np.log10(_PEAK**2 / self._error)))

    def see(self, picture: npt.NDArray[np.uint8], still: Mask | None) -> None:
        """Take the next picture [H, W, 3] uint8 that is shown. still: which cells did not move, if it was computed as a
        whole after pictures that were not; else None."""
        last, self._last = self._last, picture
        if last is None or still is None or not still.any():
            return
        rows, columns = still.shape
        difference = picture.astype(np.float32) - last
        cells = (difference**2).reshape(rows, picture.shape[0] // rows, columns, picture.shape[1] // columns, 3)
        error = float(cells.mean(axis=(1, 3, 4))[still].mean())
        self._error = error if self._error is None else self._error + _SMOOTHING * (error - self._error)
