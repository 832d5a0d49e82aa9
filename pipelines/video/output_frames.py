"""Owns how a finished chunk's pictures become output frames, and which pictures a stream takes.

Knows no cache and no controls.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..errors import InputError
from ..types import Frame
from .chunks import ChunkSlot


def chunk_frames(slot: ChunkSlot, *, first_seq: int, frame_rate: Fraction) -> list[Frame]:
    """The kept frames of a finished chunk, numbered from `first_seq`.

    Time and source are those of the input frame; prompt-only frames are stamped at `frame_rate` frames a second.
    """
    assert slot.readback is not None
    birth, content = slot.birth, slot.birth.content
    frames = []
    for place, source in enumerate(content.frames[: content.kept]):
        frames.append(
            Frame(
                image=slot.readback.picture(slot.buffer, place),
                pts=birth.first_ordinal + place if source is None else source.pts,
                time_base=1 / frame_rate if source is None else source.time_base,
                seq=first_seq + place,
                source_seq=None if source is None else source.seq,
                captured_ns=None if source is None else source.captured_ns,
            )
        )
    return frames


def check_image(frame: Frame, width: int, height: int) -> None:
    """Raises InputError unless the frame is [height, width, 3] uint8."""
    wanted = (height, width, 3)
    if frame.image.shape != wanted or frame.image.dtype != np.uint8:
        raise InputError(
            f"The frame is {frame.image.dtype} {frame.image.shape}; this stream takes uint8 {wanted}.",
            "Resize it to info.width x info.height RGB.",
        )
