"""Owns the contract of a frame stage, and the chain of them that every finished frame of a stream passes.

Independent of models, tensors and engines; pipelines/stages has the table that a user chooses from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from .types import Frame, StreamInfo


class FrameStage(Protocol):
    """Changes, makes or drops finished frames before they are handed over. One object for each stream.

    Frames keep their size and stay uint8 RGB; the picture of a frame that came in is never written to. A frame that is
    changed keeps its time and its source; one that is made between two has a time between theirs (see `between`) and
    the source of the second. The chain numbers the frames (seq), so a stage need not.
    """

    @property
    def name(self) -> str:
        """Its name in the table of stages."""
        ...

    @property
    def rate(self) -> Fraction:
        """Frames out for each frame in, over a long time: 1 changes pictures, 2 makes as many, 1/2 drops every second
        one."""
        ...

    @property
    def latency_frames(self) -> int:
        """How many of its latest input frames it holds back until later ones come; 0: a frame leaves at once."""
        ...

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        """Take frames that were finished together, one or more, oldest first; what comes of them does not depend on how
        they are grouped. Returns the frames that are ready, oldest first."""
        ...

    def flush(self) -> list[Frame]:
        """The frames that are held back; afterwards none is."""
        ...

    def reset(self) -> None:
        """Forget everything: the stream begins anew."""
        ...


class _Link:
    """A stage and the count of its frames: in + made == out + dropped + held, after every call."""

    def __init__(self, stage: FrameStage) -> None:
        self.stage = stage
        self.held = self.made = self.dropped = 0

    def push(self, frames: list[Frame]) -> list[Frame]:
        shape = frames[0].image.shape
        out = self.stage.push(frames)
        assert all(frame.image.shape == shape and frame.image.dtype == frames[0].image.dtype for frame in out), (
            f"the stage {self.stage.name} changed the size or type of a frame"
        )
        self._count(len(frames), len(out), min(self.stage.latency_frames, self.held + len(frames)))
        return out

    def flush(self) -> list[Frame]:
        out = self.stage.flush()
        self._count(0, len(out), 0)
        return out

    def reset(self) -> None:
        self.stage.reset()
        self.held = self.made = self.dropped = 0

    def _count(self, taken: int, out: int, held: int) -> None:
        surplus = out - (self.held + taken - held)
        self.made += max(0, surplus)
        self.dropped += max(0, -surplus)
        self.held = held


class StageChain:
    """The stages of one stream, in order. Without any, frames pass as the objects that they are.

    A stage holds its latest `latency_frames` frames; of the others, those that give no frame are dropped, and frames
    beyond one for each are made. So at any moment: frames in + made == out + dropped + held.
    """

    def __init__(self, stages: Sequence[FrameStage] = ()) -> None:
        self._links = [_Link(stage) for stage in stages]
        self.out = 0
        """Frames that were handed over."""

    @property
    def held(self) -> int:
        """Frames inside the stages."""
        return sum(link.held for link in self._links)

    @property
    def made(self) -> int:
        """Frames that the stages added."""
        return sum(link.made for link in self._links)

    @property
    def dropped(self) -> int:
        """Frames that ended in a stage."""
        return sum(link.dropped for link in self._links)

    def push(self, frames: list[Frame]) -> list[Frame]:
        """Finished frames, oldest first. Returns those to be handed over, numbered."""
        for link in self._links:
            if frames:
                frames = link.push(frames)
        return self._numbered(frames)

    def flush(self) -> list[Frame]:
        """What the stages hold, numbered; afterwards they hold nothing."""
        frames: list[Frame] = []
        for link in self._links:
            passed = link.push(frames) if frames else []
            frames = [*passed, *link.flush()]
        return self._numbered(frames)

    def reset(self) -> None:
        """Forget everything and count from 0."""
        for link in self._links:
            link.reset()
        self.out = 0

    def described(self, info: StreamInfo, *, chunk_ticks: int) -> StreamInfo:
        """What `info`, of a stream without stages, becomes with them.

        chunk_ticks: ticks from the end of a slot to the end of the next one; a frame that is held back waits for it.
        """
        if not self._links:
            return info
        rate, most, held = Fraction(1), info.max_frames, Fraction(0)
        for link in self._links:
            held += link.stage.latency_frames / rate
            rate *= link.stage.rate
            most = math.ceil(most * link.stage.rate)
        return replace(
            info,
            frame_rate=info.frame_rate * rate,
            stage_rate=rate,
            max_frames_per_chunk=most,
            latency_ticks=info.latency_ticks + math.ceil(held / info.max_frames) * chunk_ticks,
        )

    def _numbered(self, frames: list[Frame]) -> list[Frame]:
        first = self.out
        self.out += len(frames)
        return [f if f.seq == n else replace(f, seq=n) for n, f in enumerate(frames, first)]

    def check_integrity(self) -> None:
        """Assert that what leaves a stage enters the next one, and that no count is below 0."""
        assert all(min(link.held, link.made, link.dropped) >= 0 for link in self._links), "a stage's count is below 0"
        assert all(link.held <= link.stage.latency_frames for link in self._links), "a stage holds more than it says"


def between(earlier: Frame, later: Frame, fraction: Fraction) -> Frame:
    """`later` with the time at `fraction` (0 to 1) of the way from `earlier`, in a time base that is fine enough."""
    assert 0 <= fraction <= 1, fraction
    start, end = earlier.pts * earlier.time_base, later.pts * later.time_base
    at = start + fraction * (end - start)
    base = later.time_base / (at / later.time_base).denominator
    return replace(later, pts=int(at / base), time_base=base)
