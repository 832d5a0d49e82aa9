"""Resizing pictures: pad, crop or stretch to another size, and back.

Pictures are [H, W, 3] uint8 RGB, sizes are (width, height) in pixels. Independent of files and engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np

from pipelines.core.types import Picture

Size = tuple[int, int]


class Aspect(Enum):
    """What to do if the aspect ratios differ."""

    PAD = "pad"  # the whole picture, black bars around it
    CROP = "crop"  # the centre of the picture, no bars
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
    """How a source is placed in a target: `taken` of the source is scaled to `placed` in the target."""

    target: Size
    taken: Box
    placed: Box

    @classmethod
    def plan(cls, source: Size, target: Size, aspect: Aspect, pixel_aspect: float = 1.0) -> Placement:
        """source: stored size; pixel_aspect: displayed width / height of one stored pixel."""
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
        """`image` of the source size -> a new C-contiguous picture of the target size."""
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
    """`image` scaled to `size`, always a new C-contiguous array. Area averaging to shrink, cubic to enlarge."""
    height, width = image.shape[:2]
    if (width, height) == size:
        return np.array(image, order="C")
    shrinking = size[0] * size[1] < width * height
    how = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def even(size: Size) -> Size:
    """The smallest even size that is not smaller, as 4:2:0 video requires."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def output_placement(native: Size, source: Placement | None, size: Size, aspect: Aspect) -> Placement:
    """The placement of the engine's picture in an output of `size`; crops bars that were added to the input.

    source: how the source was placed in the native picture (None: prompt-only).
    """
    if source is None or size == native:
        return Placement.plan(native, size, aspect)
    inner = source.placed
    ratio = size[0] / size[1] / (inner.width / inner.height)
    # Ratios within 2 % differ only by rounding to even pixels: fill the output, no thin bars.
    plan = Placement.plan((inner.width, inner.height), size, aspect, ratio if abs(ratio - 1) < 0.02 else 1.0)
    taken = Box(
        left=inner.left + plan.taken.left,
        top=inner.top + plan.taken.top,
        width=plan.taken.width,
        height=plan.taken.height,
    )
    return Placement(target=size, taken=taken, placed=plan.placed)
