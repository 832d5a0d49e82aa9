"""Owns a stream's frames from the admission of their slot until they are output: order, host buffers, timestamps.

Every frame leaves through the same chain of stages, whoever requests it. Independent of models and caches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch

from .frame_stages import StageChain
from .transfers import Mark, Readback
from .types import Frame, Picture


class SlotFrames:
    """The frames that one slot or chunk will output.

    sources: the input frame of each, None where prompt-only. first_ordinal: index of the first among the stream's
    prompt-only frames. repeats: another slot's, whose pictures these frames show again. seen: called with its first
    picture when that is on the host.
    """

    __slots__ = ("_done", "buffer", "first_ordinal", "readback", "repeats", "seen", "sources")

    def __init__(
        self,
        sources: Sequence[Frame | None],
        first_ordinal: int,
        readback: Readback,
        repeats: SlotFrames | None = None,
    ) -> None:
        self.sources, self.first_ordinal, self.repeats = tuple(sources), first_ordinal, repeats
        self.readback = readback
        self.buffer: int = readback.acquire() if repeats is None else readback.share(repeats.buffer)
        self._done: Mark | None = None
        self.seen: Callable[[Picture], None] | None = None

    @property
    def done(self) -> Mark | None:
        """The mark that passes when the pictures are on the host; None: they are not decoded yet."""
        return self._done if self.repeats is None else self.repeats.done

    @done.setter
    def done(self, mark: Mark) -> None:
        self._done = mark

    @property
    def mark(self) -> Mark:
        """The mark of its host buffer, where buffers have one."""
        return self.readback.mark(self.buffer)

    def receive(self, pictures: torch.Tensor) -> None:
        """Start copying pictures [F, H, W, 3] uint8 from the device, F >= the number of frames; does not wait."""
        self.readback.receive(self.buffer, pictures)

    def frames(self, *, first_seq: int, frame_rate: Fraction) -> list[Frame]:
        """Return the finished frames, numbered from `first_seq`.

        Timestamps and sources are those of the input frames; prompt-only frames are `frame_rate` frames per second.
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


class SlotFrameQueue:
    """The outputs of one stream, oldest first, the host buffers for their pictures, and the frame stages."""

    def __init__(self, readback: Readback, frame_rate: Fraction, stages: StageChain) -> None:
        """frame_rate: of prompt-only frames, before the stages."""
        self._readback, self._frame_rate, self.stages = readback, frame_rate, stages
        self._order: deque[SlotFrames] = deque()
        self._kept: SlotFrames | None = None  # may be repeated, so its buffer stays in use
        self._finished = 0  # frames that entered the stages

    @property
    def free(self) -> int:
        """How many more slots can be admitted."""
        return min(self._readback.free, self._readback.count - len(self._order))

    @property
    def frames(self) -> int:
        """Number of frames that are not output yet, finished or not."""
        return sum(len(output.sources) for output in self._order) + self.stages.held

    @property
    def finished(self) -> bool:
        """Whether any slot's last step has been issued but its frames are not pulled."""
        return any(output.done is not None for output in self._order)

    @property
    def waiting(self) -> bool:
        """Whether any slot is not pulled yet."""
        return bool(self._order)

    def add(self, sources: Sequence[Frame | None], first_ordinal: int) -> SlotFrames:
        """Append the output of a new slot. There must be a free buffer."""
        output = SlotFrames(sources, first_ordinal, self._readback)
        self._order.append(output)
        return output

    def keep(self, output: SlotFrames) -> None:
        """Keep a slot's pictures, so that `repeat` can show them again; those kept before are not kept any more."""
        self._readback.share(output.buffer)
        self._forget()
        self._kept = output

    def repeat(self, sources: Sequence[Frame | None], first_ordinal: int) -> None:
        """Append the output of a slot that shows the pictures that are kept."""
        assert self._kept is not None
        self._order.append(SlotFrames(sources, first_ordinal, self._readback, self._kept))

    def _forget(self) -> None:
        if self._kept is not None:
            self._readback.release(self._kept.buffer)
            self._kept = None

    def pull(self) -> list[Frame]:
        """Return what the stages output for finished frames, in order, up to the first unfinished one. Never waits."""
        frames: list[Frame] = []
        while self._order and self._order[0].done is not None and self._order[0].done.passed():
            output = self._order.popleft()
            finished = output.frames(first_seq=self._finished, frame_rate=self._frame_rate)
            self._readback.release(output.buffer)
            if output.seen is not None:
                output.seen(finished[0].image)
            self._finished += len(finished)
            frames += self.stages.push(finished)
        return frames

    def wait(self) -> bool:
        """Wait for the oldest slot's pictures. False: there is no slot, or its last step has not been issued."""
        if not self._order or self._order[0].done is None:
            return False
        self._order[0].done.wait()
        return True

    def clear(self) -> None:
        """Drop everything and restart the counts at 0."""
        for output in self._order:
            self._readback.release(output.buffer)
        self._order.clear()
        self._forget()
        self.stages.reset()
        self._finished = 0

    def check_integrity(self) -> None:
        """Assert that the buffers and the frame counts are consistent."""
        used = [output.buffer for output in (*self._order, *filter(None, (self._kept,)))]
        self._readback.check_integrity(used)
        stages = self.stages
        total = stages.out + stages.dropped + stages.held
        assert self._finished + stages.made == total, (self._finished, stages.made, total)
        stages.check_integrity()
