"""Owns what a clip itself says: how noisy it is, and where it moves. Independent of engines and networks.

Pictures are [H, W, 3] uint8 of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cache.features.motion import MotionMap
from pipelines.core.types import Picture

_QUIET = 0.25  # share of the latents that noise is taken from: those that change least
_TO_DEVIATION = 3.1383  # of normally distributed values, from that quantile of their magnitudes
_MOST_NOISE = 2.0  # levels; where even quiet parts change more, they move
_GREEN = 1


def latent_means(picture: Picture, factor: int) -> npt.NDArray[np.float32]:
    """Return the mean green of each latent's pixels, [H / factor, W / factor]."""
    rows, columns = picture.shape[0] // factor, picture.shape[1] // factor
    green = picture[: rows * factor, : columns * factor, _GREEN].astype(np.float32)
    means: npt.NDArray[np.float32] = green.reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    return means


def clip_noise(pictures: Sequence[Picture], factor: int) -> float:
    """Return the deviation, in levels, of a latent's mean from frame to frame where nothing moves, at most 2: from the
    quarter of the latents that differ least, the median of all pairs of frames.

    `MotionMap` estimates it from half of the latents, in whole levels, while a stream runs.
    """
    means = [latent_means(picture, factor) for picture in pictures]
    quiet = [float(np.quantile(np.abs(after - before), _QUIET)) for before, after in pairwise(means)]
    return min(_MOST_NOISE, _TO_DEVIATION * float(np.median(quiet)))


def moving_share(
    pictures: Sequence[Picture], *, factor: int, cell: int, levels: float, noise_factor: float
) -> npt.NDArray[np.float64]:
    """Return, for each cell [rows, columns], the share of the frames in which it moved since the frame before."""
    height, width = pictures[0].shape[:2]
    motion = MotionMap(height, width, factor=factor, cell=cell, levels=levels, noise_factor=noise_factor, margin=0)
    motion.moved(pictures[0])
    motion.take()
    moved = np.zeros(motion.grid)
    for picture in pictures[1:]:
        moved += motion.moved(picture)
        motion.take()
    return moved / (len(pictures) - 1)


def typical_part(pictures: Sequence[Picture], length: int, factor: int) -> int:
    """Return where the part of that many frames begins whose mean change from frame to frame is the median of all such
    parts: neither the quietest nor the wildest of the clip."""
    means = [latent_means(picture, factor) for picture in pictures]
    changes = np.array([0.0, *(float(np.abs(after - before).mean()) for before, after in pairwise(means))])
    if len(changes) <= length:
        return 0
    parts = np.lib.stride_tricks.sliding_window_view(changes, length).mean(axis=1)
    order = np.argsort(parts, kind="stable")
    return int(order[len(order) // 2])
