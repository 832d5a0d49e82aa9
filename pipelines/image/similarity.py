"""Owns the stochastic similarity filter: whether an input frame repeats the last accepted one.

Independent of streams and time; never sleeps. Source: Kodaira et al. 2023 (StreamDiffusion), section 3.4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class SimilarityFilter:
    """Skips frames with a probability that grows with the cosine similarity to the last accepted frame.

    p_skip = max(0, 1 - (1 - cos) / (1 - threshold)), over the full frame in [-1, 1], float32. Counts consecutive
    skips: an accepted frame resets the count.
    """

    def __init__(self, seed: int, pixels: int) -> None:
        """pixels: number of values in a frame (H * W * 3)."""
        self._seed = seed
        self._last = np.zeros(pixels, dtype=np.float32)
        self._work = np.zeros(pixels, dtype=np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the last frame and restart the random sequence."""
        self._random = np.random.default_rng(self._seed)
        self._norm = 0.0
        self._has_last = False
        self._skips = 0

    def skips(self, image: npt.NDArray[np.uint8], threshold: float, max_skips: int) -> bool:
        """Return whether to skip a frame [H, W, 3] uint8. Later frames are compared to the last accepted one."""
        np.multiply(image.reshape(-1), np.float32(1 / 127.5), out=self._work, casting="unsafe")
        self._work -= 1.0
        norm = float(np.sqrt(np.dot(self._work, self._work)))
        similar = self._has_last and self._random.random() < self._skip_probability(norm, threshold)
        if similar and self._skips < max_skips:
            self._skips += 1
            return True
        self._skips = 0
        self._last, self._work = self._work, self._last
        self._norm, self._has_last = norm, True
        return False

    def _skip_probability(self, norm: float, threshold: float) -> float:
        if threshold >= 1.0:
            return 0.0
        scale = norm * self._norm
        cosine = float(np.dot(self._work, self._last)) / scale if scale > 0 else float(norm == self._norm)
        return max(0.0, 1.0 - (1.0 - cosine) / (1.0 - threshold))
