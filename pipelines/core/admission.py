"""Owns the checks of what a caller offers to a stream. Independent of engines and tensors."""

from __future__ import annotations

import numpy as np

from .errors import InputError
from .types import Frame


def check_frame(frame: Frame, width: int, height: int) -> None:
    """Raise InputError unless the frame is [height, width, 3] uint8."""
    wanted = (height, width, 3)
    if frame.image.shape != wanted or frame.image.dtype != np.uint8:
        raise InputError(
            f"The frame is {frame.image.dtype} {frame.image.shape}; this stream takes uint8 {wanted}.",
            "Resize it to info.width x info.height RGB.",
        )


def check_count(frames: int) -> None:
    """Raise InputError unless `frames`, the number of prompt-only frames requested, is at least 1."""
    if frames < 1:
        raise InputError(f"{frames} frames cannot be generated.", "Request 1 or more.")
