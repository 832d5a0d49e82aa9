"""Owns measures of how much a picture differs from its reference: PSNR, MS-SSIM, GMSD.

Pictures are uint8 RGB [H, W, 3]; the structural measures are of Rec. 601 luma in levels of 0..255, as their papers'.
Independent of time, clips and caches.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from pipelines.core.types import Picture

Plane: TypeAlias = npt.NDArray[np.float32]

PEAK = 255.0
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales from fine to coarse: Wang, Simoncelli and Bovik 2003, section 3.2."""
WINDOW_PX, WINDOW_SIGMA_PX = 11, 1.5
K1, K2 = 0.01, 0.03
GRADIENT_C = 170.0
"""Xue et al. 2014, section II: for pictures in 0..255."""


def luma(picture: Picture) -> Plane:
    """Rec. 601 luma, float32 [H, W] in 0..255."""
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def mean_squared_error(a: Picture, b: Picture) -> float:
    """Over all pixels and channels, in squared levels. Raises ValueError for other shapes."""
    if a.shape != b.shape:
        raise ValueError(f"pictures of {a.shape} and {b.shape} cannot be compared: give the same size")
    difference = a.astype(np.int32) - b
    return float(np.mean(difference * difference, dtype=np.float64))


def decibels(mean_squared: float) -> float:
    """PSNR in dB of a mean squared error in squared levels; infinite for 0."""
    return math.inf if mean_squared == 0 else 10 * math.log10(PEAK**2 / mean_squared)


def psnr_db(a: Picture, b: Picture) -> float:
    """10 log10(255^2 / mean squared error); infinite for equal pictures."""
    return decibels(mean_squared_error(a, b))


def scale_weights(side_px: int) -> tuple[float, ...]:
    """The weights of MS-SSIM's scales for pictures whose shorter side is that long.

    The window of 11 px must fit into the coarsest scale: below 176 px there are as many scales as fit, and their
    published weights are divided by their sum. Raises ValueError below 11 px.
    """
    if side_px < WINDOW_PX:
        raise ValueError(f"a picture of {side_px} px is smaller than MS-SSIM's window of {WINDOW_PX} px")
    fitting = sum(side_px >> scale >= WINDOW_PX for scale in range(len(SCALE_WEIGHTS)))
    weights = SCALE_WEIGHTS[:fitting]
    # All five stand as published, though they add up to 1.0001.
    return weights if fitting == len(SCALE_WEIGHTS) else tuple(weight / sum(weights) for weight in weights)


def ms_ssim(a: Picture, b: Picture) -> float:
    """Multi-scale structural similarity, 0..1, 1 for equal pictures: Wang, Simoncelli and Bovik 2003, eq. 7.

    SSIM's window (Gaussian, 11 px, sigma 1.5) and constants (0.01, 0.03) as in Wang et al. 2004; windows beyond the
    border are left out; luminance counts at the coarsest scale only. Between scales: means of 2x2 pixels. A negative
    mean of a scale counts as 0.
    """
    weights = scale_weights(min(a.shape[:2]))
    x, y = luma(a), luma(b)
    product = 1.0
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim_terms(x, y)
        last = scale == len(weights) - 1
        mean = float((luminance * structure if last else structure).mean(dtype=np.float64))
        product *= max(mean, 0.0) ** weight
        if not last:
            x, y = halved(x), halved(y)
    return product


def _ssim_terms(x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """(l, cs) of Wang et al. 2004, eq. 6 and 13, at every full window."""
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    variances = (_windowed(x * x) - mean_x * mean_x) + (_windowed(y * y) - mean_y * mean_y)
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return np.asarray(luminance, np.float32), np.asarray(structure, np.float32)


def _windowed(plane: Plane) -> Plane:
    """Means under the Gaussian window, where it lies inside: [H - 10, W - 10]."""
    edge = WINDOW_PX // 2
    blurred = cv2.GaussianBlur(plane, (WINDOW_PX, WINDOW_PX), WINDOW_SIGMA_PX)
    return np.asarray(blurred[edge:-edge, edge:-edge], dtype=np.float32)


def halved(plane: Plane) -> Plane:
    """Means of 2x2 pixels, [H // 2, W // 2]; an odd last row or column is left out."""
    height, width = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    blocks = plane[:height, :width].reshape(height // 2, 2, width // 2, 2)
    return np.asarray(blocks.mean((1, 3)), dtype=np.float32)


def gmsd(a: Picture, b: Picture) -> float:
    """Gradient magnitude similarity deviation, 0 for equal pictures, larger for worse: Xue et al. 2014, eq. 4 and 6.

    Of means of 2x2 pixels; gradients by Prewitt's operator, divided by 3; pixels without all neighbours are left out.
    It says how unevenly a picture is damaged: the same change of brightness everywhere costs nothing.
    """
    m, n = (_gradient_magnitude(halved(luma(picture))) for picture in (a, b))
    similarity = (2 * m * n + GRADIENT_C) / (m * m + n * n + GRADIENT_C)
    return float(similarity.std(dtype=np.float64))


def _gradient_magnitude(plane: Plane) -> Plane:
    """By Prewitt's operator: [H - 2, W - 2]."""
    columns = plane[:, 2:] - plane[:, :-2]
    rows = plane[2:] - plane[:-2]
    across = (columns[:-2] + columns[1:-1] + columns[2:]) / 3
    down = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 3
    return np.asarray(np.sqrt(across * across + down * down), dtype=np.float32)
