"""Pictures to measure on: random textures, with noise, and moving by known amounts."""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.core.types import Picture

SIDE = 96


def textured(seed: int = 0, height: int = SIDE, width: int = SIDE) -> Picture:
    """A random picture with detail at several sizes."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, share in ((5, 0.5), (16, 0.3), (40, 0.2)):
        noise = random.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        total += share * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 255).astype(np.uint8)


def noisy(picture: Picture, sigma: float, seed: int = 1) -> Picture:
    """The picture with Gaussian noise of `sigma` levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def moving_pictures(frames: int, step: int, brightness: float = 0) -> list[Picture]:
    """A window that moves over a large picture by whole pixels. brightness: added to every other frame."""
    large = textured(3, SIDE, SIDE + frames * step).astype(np.float64) * 0.8 + 20
    shown = [large[:, step * t : step * t + SIDE] + brightness * (t % 2) for t in range(frames)]
    return [picture.round().clip(0, 255).astype(np.uint8) for picture in shown]
