"""The input of a measurement: the bundled camera clip at a stream's size, in host memory, over and over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import count
from pathlib import Path

from pipelines.core.types import Frame, Picture

CLIP = Path(__file__).parents[2] / "assets" / "samples" / "camera.mp4"
_TIME_BASE = Fraction(1, 1000)


def camera_pictures(width: int, height: int, clip: Path = CLIP) -> list[Picture]:
    """Return the pictures of a video file, cropped to that size as the live server does. Raises InputError."""
    from app.media.geometry import Aspect, Placement
    from app.media.open_source import open_source

    source = open_source(clip, None)
    placement = Placement.plan(source.info.size, (width, height), Aspect.CROP, source.info.pixel_aspect)
    return [placement.apply(frame.image) for frame in source.frames()]


def endless_camera(pictures: Sequence[Picture]) -> Iterator[Frame]:
    """Yield frames of the pictures for ever, each captured at the moment it is taken: there is always a newer one."""
    start_ns = time.monotonic_ns()
    for number in count():
        now_ns = time.monotonic_ns()
        yield Frame(
            image=pictures[number % len(pictures)],
            pts=(now_ns - start_ns) // 1_000_000,
            time_base=_TIME_BASE,
            seq=number,
            captured_ns=now_ns,
        )
