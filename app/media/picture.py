"""Picture helpers of the front process: crop and scale to the engine's size, encode as JPEG.

Pictures are [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipelines.core.types import Picture


def cover(image: Picture, width: int, height: int) -> Picture:
    """The centre of `image`, cropped to the target aspect ratio and scaled to [height, width, 3]."""
    rows, columns = image.shape[:2]
    scale = max(width / columns, height / rows)
    crop_width, crop_height = min(columns, round(width / scale)), min(rows, round(height / scale))
    left, top = (columns - crop_width) // 2, (rows - crop_height) // 2
    cropped = image[top : top + crop_height, left : left + crop_width]
    if cropped.shape[:2] == (height, width):
        return np.ascontiguousarray(cropped)
    shrinking = scale < 1
    resized = cv2.resize(cropped, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized, dtype=np.uint8)


def jpeg(image: Picture, quality: int = 88) -> bytes:
    """`image` as a JPEG file."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "JPEG encoding of a uint8 RGB picture cannot fail"
    return bytes(data.tobytes())
