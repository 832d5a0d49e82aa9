"""Owns what moved on an input: where it differs from what was last computed, by more than its noise.

Works on arrays of integers: pictures [H, W, C] uint8. Independent of networks and decisions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .windows import Mask, Size, Window

_EVERY = 2  # rows and columns, of which the noise is estimated
_TO_DEVIATION = 1.4826  # of normally distributed values, from the median of their magnitudes


class MotionMap:
    """Compares inputs with references: for each part of the picture, the input that it was last computed from.

    There is a reference for each *chain* of frames that take over from each other, and one for what was shown last.

    A latent has moved if the mean of its `factor` x `factor` pixels differs by more than `levels` in any channel, or by
    more than `noise_factor` deviations of the noise. That is estimated from the median difference in green (while less
    than half of the picture moves, that is what stands still) and taken for no more than `levels` / 2. A cell is `cell`
    x `cell` latents; it has moved if a latent within `margin` latents of it has.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        factor: int,
        cell: int,
        levels: float,
        noise_factor: float,
        margin: int,
        chains: int = 1,
    ) -> None:
        """height, width: of the picture, in pixels, multiples of factor x cell."""
        import cv2

        self._cv2 = cv2
        self._cell = cell
        self._kernel = np.ones((2 * margin + 1, 2 * margin + 1), dtype=np.uint8)
        self._levels, self._noise_factor = levels, noise_factor
        rows, columns = height // factor, width // factor
        self._size = (columns, rows)
        self._means = np.zeros((rows, columns, 3), dtype=np.uint8)
        self._references = [np.zeros_like(self._means) for _ in range(chains)]
        self._shown = self._references[0] if chains == 1 else np.zeros_like(self._means)
        self.grid: Size = (rows // cell, columns // cell)

    def moved(self, picture: npt.NDArray[np.uint8], chain: int = 0) -> Mask:
        """Return which cells [rows, columns] of a picture moved, since its chain computed them or since another chain
        showed them; `take` then takes over parts of that picture."""
        self._cv2.resize(picture, self._size, dst=self._means, interpolation=self._cv2.INTER_AREA)
        moved = self._differs(self._references[chain])
        if self._shown is not self._references[chain]:
            moved |= self._differs(self._shown)
        (rows, columns), cell = self.grid, self._cell
        grown = self._cv2.dilate(moved.view(np.uint8), self._kernel)
        down = grown.reshape(rows, cell, columns * cell).max(axis=1)
        cells: Mask = down.reshape(rows, columns, cell).max(axis=2).astype(bool)
        return cells

    def take(self, windows: tuple[Window, ...] | None = None, chain: int = 0) -> None:
        """The last picture given to `moved` is computed: in these windows, or everywhere (None)."""
        reference = self._references[chain]
        if self._shown is not reference:
            self._shown[...] = self._means
        if windows is None:
            reference[...] = self._means
            return
        for window in windows:
            part = tuple(slice(s.start * self._cell, s.stop * self._cell) for s in window.slices)
            reference[part] = self._means[part]

    def _differs(self, reference: npt.NDArray[np.uint8]) -> Mask:
        """Return which latents differ from a reference by more than the noise."""
        red, green, blue = (channel for channel in self._cv2.split(self._cv2.absdiff(self._means, reference)))
        noise = _TO_DEVIATION * float(np.median(green[::_EVERY, ::_EVERY]))
        threshold = max(self._levels, self._noise_factor * min(noise, self._levels / 2))
        largest: npt.NDArray[np.uint8] = np.maximum(np.maximum(red, green), blue)
        return largest > threshold
