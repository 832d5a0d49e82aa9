"""Owns how a finished slot's pictures become output frames: stamps, order numbers, the safety checker.

Knows no ring and no controls.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from pipelines.core.types import Frame

from .model import SafetyChecker
from .slots import Slot


def output_frames(slot: Slot, *, first_seq: int, frame_rate: Fraction, safety: SafetyChecker | None) -> list[Frame]:
    """The kept frames of a finished slot, numbered from `first_seq`. Pictures that `safety` flags are black.

    Time and source are those of the input frame; prompt-only frames are stamped at `frame_rate` frames a second.
    """
    birth = slot.birth
    images = [slot.readback.picture(slot.buffer, index) for index in range(birth.kept)]
    if safety is not None:
        flagged = safety.check(np.stack(images))
        images = [np.zeros_like(i) if bad else i for i, bad in zip(images, flagged, strict=True)]
    return [
        Frame(
            image=image,
            pts=birth.first_ordinal + index if source is None else source.pts,
            time_base=1 / frame_rate if source is None else source.time_base,
            seq=first_seq + index,
            source_seq=None if source is None else source.seq,
            captured_ns=None if source is None else source.captured_ns,
        )
        for index, (image, source) in enumerate(zip(images, birth.frames[: birth.kept], strict=True))
    ]
