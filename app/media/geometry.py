"""How pictures of one size become pictures of another: pad, crop or stretch, and the way back.

Pictures are [H, W, 3] uint8 RGB, sizes are (width, height) in pixels. Knows no file and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Size = tuple[int, int]


class Aspect(Enum):
    """What happens when the aspect ratios differ."""

    PAD = "pad"  # the whole picture, black bars around it
    CROP = "crop"  # the middle of the picture, nothing black
    STRETCH = "stretch"  # the whole picture, distorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of pixels inside a picture."""

    left: int
    top: int
    width: int
    height: int

    def of(self, image: Picture) -> Picture:
        """That part of `image`, as a view."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a source lies in a target: `taken` of the source is scaled onto `placed` of the target."""

    target: Size
    taken: Box
    placed: Box

    @classmethod
    def plan(cls, source: Size, target: Size, aspect: Aspect, pixel_aspect: float = 1.0) -> Placement:
        """source: stored size; pixel_aspect: width / height of one stored pixel as it is to be shown."""
        shown = source[0] * pixel_aspect, float(source[1])
        whole_source = Box(left=0, top=0, width=source[0], height=source[1])
        whole_target = Box(left=0, top=0, width=target[0], height=target[1])
        if aspect is Aspect.STRETCH:
            return cls(target=target, taken=whole_source, placed=whole_target)
        if aspect is Aspect.PAD:
            scale = min(target[0] / shown[0], target[1] / shown[1])
            placed = _centred((shown[0] * scale, shown[1] * scale), target)
            return cls(target=target, taken=whole_source, placed=placed)
        scale = max(target[0] / shown[0], target[1] / shown[1])
        taken = _centred((target[0] / scale / pixel_aspect, target[1] / scale), source)
        return cls(target=target, taken=taken, placed=whole_target)

    def apply(self, image: Picture) -> Picture:
        """`image` of the planned source size -> a new C-contiguous picture of the target size."""
        scaled = resized(self.taken.of(image), (self.placed.width, self.placed.height))
        if (self.placed.width, self.placed.height) == self.target:
            return scaled
        canvas = np.zeros((self.target[1], self.target[0], 3), np.uint8)
        self.placed.of(canvas)[:] = scaled
        return canvas


def _centred(inner: tuple[float, float], outer: Size) -> Box:
    width = min(outer[0], max(1, round(inner[0])))
    height = min(outer[1], max(1, round(inner[1])))
    return Box(left=(outer[0] - width) // 2, top=(outer[1] - height) // 2, width=width, height=height)


def resized(image: Picture, size: Size) -> Picture:
    """`image` scaled to `size`, always a new C-contiguous array. Area average downwards, cubic upwards."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return np.array(image, order="C")
    shrinking = size[0] * size[1] < width * height
    how = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def even(size: Size) -> Size:
    """The nearest size not smaller with even sides, which 4:2:0 video needs."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def output_placement(native: Size, source: Placement | None, size: Size, aspect: Aspect) -> Placement:
    """The way from the engine's picture to an output of `size`; bars that were added on the way in are cut off.

    source: how the source was placed into the native picture (None: nothing was placed, prompt-only).
    """
    if source is None or size == native:
        return Placement.plan(native, size, aspect)
    inner = source.placed
    wanted = size[0] / size[1] / (inner.width / inner.height)
    # Within 2 % the ratios differ by rounding to whole and even pixels only: fill the output, no thin bars.
    plan = Placement.plan((inner.width, inner.height), size, aspect, wanted if abs(wanted - 1) < 0.02 else 1.0)
    taken = Box(
        left=inner.left + plan.taken.left,
        top=inner.top + plan.taken.top,
        width=plan.taken.width,
        height=plan.taken.height,
    )
    return Placement(target=size, taken=taken, placed=plan.placed)
