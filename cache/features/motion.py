"""Owns what moved on an input: where it differs from what was last computed, by more than its noise.

Works on arrays of integers: pictures [H, W, C] uint8. Independent of networks and decisions.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from .windows import Mask, Size, Window

_TO_DEVIATION = 1.4826  # of normally distributed values, from the median of their magnitudes


class MotionMap:
    """Compares inputs with references: for each part of the picture, the input that it was last computed from.

    There is a reference for each *chain* of frames that take over from each other, and one for what was shown last.

    A latent has moved if the mean of its `factor` x `factor` pixels differs by more than `levels` in any channel, or by
    more than `noise_factor` deviations of the noise. That is estimated from the median difference (while less than half
    of the picture moves, that is what stands still) and taken for no more than `levels` / 2. A cell is `cell` x `cell`
    latents; it has moved if a latent within `margin` latents of it has.
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

        self._resize = partial(cv2.resize, interpolation=cv2.INTER_AREA)
        self._cell, self._margin = cell, margin
        self._levels, self._noise_factor = levels, noise_factor
        self._latents = (height // factor, width // factor)
        self._means = np.zeros((*self._latents, 3), dtype=np.float32)
        self._references = [np.zeros_like(self._means) for _ in range(chains)]
        self._shown = self._references[0] if chains == 1 else np.zeros_like(self._means)
        self.grid: Size = (self._latents[0] // cell, self._latents[1] // cell)

    def moved(self, picture: npt.NDArray[np.uint8], chain: int = 0) -> Mask:
        """Return which cells [rows, columns] of a picture moved, since its chain computed them or since another chain
        showed them; `take` then takes over parts of that picture."""
        rows, columns = self._latents
        self._means[...] = self._resize(picture, (columns, rows))
        moved = self._differs(self._references[chain])
        if self._shown is not self._references[chain]:
            moved |= self._differs(self._shown)
        rows, columns = self.grid
        cells = _dilated(moved, self._margin).reshape(rows, self._cell, columns, self._cell)
        return cells.any(axis=(1, 3))

    def _differs(self, reference: npt.NDArray[np.float32]) -> Mask:
        """Return which latents differ from a reference by more than the noise."""
        difference = np.abs(self._means - reference)
        noise = min(_TO_DEVIATION * float(np.median(difference)), self._levels / 2)
        return difference.max(axis=2) > max(self._levels, self._noise_factor * noise)

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


def _dilated(mask: Mask, margin: int) -> Mask:
    """Return a mask in which every cell is set that has a set one within `margin` cells in both directions."""
    for axis in (0, 1):
        source, mask = mask, mask.copy()
        for shift in range(1, margin + 1):
            after, before = [slice(None)] * 2, [slice(None)] * 2
            after[axis], before[axis] = slice(shift, None), slice(None, -shift)
            mask[tuple(after)] |= source[tuple(before)]
            mask[tuple(before)] |= source[tuple(after)]
    return mask
