"""Owns the motion-aware noise controller: how much noise a chunk of input frames gets.

StreamDiffusionV2 (Feng et al. 2025, section 4.3), constants as in its code. Works on uint8 frames, not on tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

_FULL_MOTION = 0.2  # root mean square of a frame's change, on pixels in [-1, 1], that counts as 1
_LESS_NOISE = 0.1  # how much lower the noise scale is at full motion
_SMOOTHING = 0.1  # weight of the previous chunk's scale

Image = npt.NDArray[np.uint8]


class MotionNoise:
    """s = 0.9 (s_set - 0.1 d) + 0.1 s_before, with d in [0, 1] the largest frame-to-frame change in the chunk.

    The first chunk has s_before = s_set. The change from the last frame before the chunk counts too.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the previous chunk."""
        self._scale: float | None = None
        self._last: Image | None = None

    def state(self) -> tuple[float | None, Image | None]:
        """Return the state, for `restore`."""
        return self._scale, self._last

    def restore(self, state: tuple[float | None, Image | None]) -> None:
        """Return to a state returned by `state`."""
        self._scale, self._last = state

    def scale(self, frames: Sequence[Image], strength: float, *, controlled: bool) -> float:
        """Return the noise scale of a chunk of frames [H, W, 3]; `strength` itself if not controlled."""
        before = strength if self._scale is None else self._scale
        sequence = list(frames) if self._last is None else [self._last, *frames]
        self._last = frames[-1]
        if not controlled:
            self._scale = None
            return strength
        change = max((_change(a, b) for a, b in pairwise(sequence)), default=0.0)
        motion = min(change / _FULL_MOTION, 1.0)
        self._scale = (1 - _SMOOTHING) * (strength - _LESS_NOISE * motion) + _SMOOTHING * before
        return self._scale


def _change(before: Image, after: Image) -> float:
    """Root mean square of the difference, with pixels in [-1, 1]."""
    difference = after.astype(np.float32) - before.astype(np.float32)
    return math.sqrt(float(np.mean(np.square(difference)))) / 127.5
