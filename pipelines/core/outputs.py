"""Owns a stream's frames from the birth of their slot until they are handed over: their order, buffers and stamps.

Every frame leaves through the one chain of stages here, whoever asks for it. Independent of models and caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from fractions import Fraction

import torch

from .frame_stages import StageChain
from .transfers import Mark, Readback
from .types import Frame


class Output:
    """The frames that one slot or chunk will give.

    sources: the input frame of each, None where prompt-only. first_ordinal: position of the first among the stream's
    prompt-only frames. done: passes when the pictures are on the host; None: they are not made yet.
    """

    __slots__ = ("buffer", "done", "first_ordinal", "readback", "sources")

    def __init__(self, sources: Sequence[Frame | None], first_ordinal: int, readback: Readback) -> None:
        self.sources, self.first_ordinal = tuple(sources), first_ordinal
        self.readback, self.buffer = readback, readback.acquire()
        self.done: Mark | None = None

    def receive(self, pictures: torch.Tensor) -> None:
        """Start copying pictures [F, H, W, 3] uint8 from the device, F the frames or more; does not wait."""
        self.readback.receive(self.buffer, pictures)

    def frames(self, *, first_seq: int, frame_rate: Fraction) -> list[Frame]:
        """The finished frames, numbered from `first_seq`.

        Time and source are those of the input frame; prompt-only frames are stamped at `frame_rate` frames a second.
        """
        return [
            Frame(
                image=self.readback.picture(self.buffer, index),
                pts=self.first_ordinal + index if source is None else source.pts,
                time_base=1 / frame_rate if source is None else source.time_base,
                seq=first_seq + index,
                source_seq=None if source is None else source.seq,
                captured_ns=None if source is None else source.captured_ns,
            )
            for index, source in enumerate(self.sources)
        ]


class OutputQueue:
    """The outputs of one stream, oldest first, the host buffers that their pictures land in, and the stages."""

    def __init__(self, readback: Readback, frame_rate: Fraction, stages: StageChain) -> None:
        """frame_rate: of prompt-only frames, before the stages."""
        self._readback, self._frame_rate, self.stages = readback, frame_rate, stages
        self._order: deque[Output] = deque()
        self._finished = 0  # frames that went into the stages

    @property
    def free(self) -> int:
        """Slots that may still be born."""
        return self._readback.free

    @property
    def frames(self) -> int:
        """Frames that are not handed over yet, finished or not."""
        return sum(len(output.sources) for output in self._order) + self.stages.held

    @property
    def finished(self) -> bool:
        """Whether a slot's pictures are made, or being made, and not pulled."""
        return any(output.done is not None for output in self._order)

    @property
    def waiting(self) -> bool:
        """Whether there is a slot that is not pulled."""
        return bool(self._order)

    def add(self, sources: Sequence[Frame | None], first_ordinal: int) -> Output:
        """A slot was born. There must be a free buffer."""
        output = Output(sources, first_ordinal, self._readback)
        self._order.append(output)
        return output

    def pull(self) -> list[Frame]:
        """What the stages make of finished frames, as far as none before them is missing. Never waits."""
        frames: list[Frame] = []
        while self._order and self._order[0].done is not None and self._order[0].done.passed():
            output = self._order.popleft()
            finished = output.frames(first_seq=self._finished, frame_rate=self._frame_rate)
            self._readback.release(output.buffer)
            self._finished += len(finished)
            frames += self.stages.push(finished)
        return frames

    def wait(self) -> bool:
        """Wait for the oldest slot's pictures. False: it is not that far."""
        if not self._order or self._order[0].done is None:
            return False
        self._order[0].done.wait()
        return True

    def clear(self) -> None:
        """Drop everything and count from 0 again."""
        for output in self._order:
            self._readback.release(output.buffer)
        self._order.clear()
        self.stages.reset()
        self._finished = 0

    def check_integrity(self) -> None:
        """Assert that buffers and frames add up."""
        used = [output.buffer for output in self._order]
        self._readback.check_integrity(used)
        stages = self.stages
        total = stages.out + stages.dropped + stages.held
        assert self._finished + stages.made == total, (self._finished, stages.made, total)
        stages.check_integrity()
