"""Owns how finished chunks become output frames, in the order of their births, and which pictures a stream takes.

Knows no cache and no controls.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import numpy as np

from pipelines.core.errors import InputError
from pipelines.core.transfers import Readback
from pipelines.core.types import Frame

from .chunks import ChunkSlot


class Outputs:
    """The chunks of one stream from birth to `pull`, oldest first, and the host buffers that their pictures land in."""

    def __init__(self, readback: Readback, frame_rate: Fraction) -> None:
        self._readback, self._frame_rate = readback, frame_rate
        self._order: deque[ChunkSlot] = deque()
        self.count = 0  # frames that were pulled

    @property
    def free(self) -> int:
        """Chunks that may still be born."""
        return self._readback.free

    @property
    def frames(self) -> int:
        """Frames that are not pulled yet, finished or not."""
        return sum(slot.birth.content.kept for slot in self._order)

    @property
    def finished(self) -> bool:
        """Whether a chunk is decoded, or being so, and not pulled."""
        return any(slot.done is not None for slot in self._order)

    def add(self, slot: ChunkSlot) -> None:
        """A chunk was born."""
        slot.readback, slot.buffer = self._readback, self._readback.acquire()
        self._order.append(slot)

    def pull(self) -> list[Frame]:
        """Frames of finished chunks, as far as none before them is missing. Never waits."""
        frames: list[Frame] = []
        while self._order and self._order[0].done is not None and self._order[0].done.passed():
            slot = self._order.popleft()
            new = chunk_frames(slot, first_seq=self.count, frame_rate=self._frame_rate)
            frames.extend(new)
            self.count += len(new)
            self._readback.release(slot.buffer)
        return frames

    def wait(self) -> bool:
        """Wait for the oldest chunk's pictures. False: it is not that far."""
        if not self._order or self._order[0].done is None:
            return False
        self._order[0].done.wait()
        return True

    def clear(self) -> None:
        """Drop all chunks and count from 0 again."""
        for slot in self._order:
            self._readback.release(slot.buffer)
        self._order.clear()
        self.count = 0


def chunk_frames(slot: ChunkSlot, *, first_seq: int, frame_rate: Fraction) -> list[Frame]:
    """The kept frames of a finished chunk, numbered from `first_seq`.

    Time and source are those of the input frame; prompt-only frames are stamped at `frame_rate` frames a second.
    """
    assert slot.readback is not None
    birth, content = slot.birth, slot.birth.content
    frames = []
    for index, source in enumerate(content.frames[: content.kept]):
        frames.append(
            Frame(
                image=slot.readback.picture(slot.buffer, index),
                pts=birth.first_ordinal + index if source is None else source.pts,
                time_base=1 / frame_rate if source is None else source.time_base,
                seq=first_seq + index,
                source_seq=None if source is None else source.seq,
                captured_ns=None if source is None else source.captured_ns,
            )
        )
    return frames


def check_frame(frame: Frame, width: int, height: int) -> None:
    """Raises InputError unless the frame is [height, width, 3] uint8."""
    wanted = (height, width, 3)
    if frame.image.shape != wanted or frame.image.dtype != np.uint8:
        raise InputError(
            f"The frame is {frame.image.dtype} {frame.image.shape}; this stream takes uint8 {wanted}.",
            "Resize it to info.width x info.height RGB.",
        )
