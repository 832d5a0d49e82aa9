"""Owns the contract of a frame stage, and the chain of stages that every finished frame of a stream goes through.

Independent of models, tensors and engines; pipelines/stages has the table of stages that a user can choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

from .types import Frame, StreamInfo


class FrameStage(Protocol):
    """Changes, adds or drops finished frames before they are output. Each stream has its own stage objects.

    Frames keep their size and stay uint8 RGB; a stage never writes to the picture of an input frame. A changed frame
    keeps its timestamp and its source; one added between two has a timestamp between theirs (see `between`) and the
    source of the second. The chain numbers the frames (seq), so a stage does not have to.
    """

    @property
    def name(self) -> str:
        """The stage's name in the table of stages."""
        ...

    @property
    def rate(self) -> Fraction:
        """Output frames per input frame, on average: 1 only changes frames, 2 doubles them, 1/2 drops every second
        one."""
        ...

    @property
    def latency_frames(self) -> int:
        """How many of its latest input frames it holds back until later ones arrive; 0: frames leave at once."""
        ...

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        """Take one or more frames that were finished together, oldest first. Returns the frames that are ready, oldest
        first. The overall result must not depend on how frames are grouped into calls."""
        ...

    def flush(self) -> list[Frame]:
        """Return the frames that are held back; afterwards the stage holds none."""
        ...

    def reset(self) -> None:
        """Drop all state: the stream starts over."""
        ...


class _Link:
    """A stage and its frame counts: in + made == out + dropped + held, after every call."""

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
    """The stages of one stream, in order. Without stages, frames pass through unchanged, as the same objects.

    A stage holds its latest `latency_frames` frames. Of the others, a surplus of output frames counts as made and a
    deficit as dropped, call by call. So at all times: frames in + made == out + dropped + held.
    """

    def __init__(self, stages: Sequence[FrameStage] = ()) -> None:
        self._links = [_Link(stage) for stage in stages]
        self.out = 0
        """Number of frames output so far."""

    @property
    def held(self) -> int:
        """Number of frames held back by the stages."""
        return sum(link.held for link in self._links)

    @property
    def made(self) -> int:
        """Number of frames that the stages added."""
        return sum(link.made for link in self._links)

    @property
    def dropped(self) -> int:
        """Number of frames that the stages dropped."""
        return sum(link.dropped for link in self._links)

    def push(self, frames: list[Frame]) -> list[Frame]:
        """Take finished frames, oldest first. Returns the frames to output, numbered."""
        for link in self._links:
            if frames:
                frames = link.push(frames)
        return self._numbered(frames)

    def flush(self) -> list[Frame]:
        """Return the frames that the stages hold, numbered; afterwards they hold none."""
        frames: list[Frame] = []
        for link in self._links:
            passed = link.push(frames) if frames else []
            frames = [*passed, *link.flush()]
        return self._numbered(frames)

    def reset(self) -> None:
        """Drop all state and restart the counts at 0."""
        for link in self._links:
            link.reset()
        self.out = 0

    def described(self, info: StreamInfo, *, chunk_ticks: int) -> StreamInfo:
        """Return `info`, which describes a stream without stages, as it is with these stages.

        chunk_ticks: ticks from the end of one slot to the end of the next, for which a frame that is held back waits.
        """
        if not self._links:
            return info
        rate, max_frames, held = Fraction(1), info.max_frames, Fraction(0)
        for link in self._links:
            held += link.stage.latency_frames / rate
            rate *= link.stage.rate
            max_frames = math.ceil(max_frames * link.stage.rate)
        return replace(
            info,
            frame_rate=info.frame_rate * rate,
            stage_rate=rate,
            max_frames_per_chunk=max_frames,
            latency_ticks=info.latency_ticks + math.ceil(held / info.max_frames) * chunk_ticks,
        )

    def _numbered(self, frames: list[Frame]) -> list[Frame]:
        first = self.out
        self.out += len(frames)
        return [f if f.seq == n else replace(f, seq=n) for n, f in enumerate(frames, first)]

    def check_integrity(self) -> None:
        """Assert that no count is negative and that no stage holds back more frames than its latency."""
        assert all(min(link.held, link.made, link.dropped) >= 0 for link in self._links), "a stage has a negative count"
        assert all(link.held <= link.stage.latency_frames for link in self._links), (
            "a stage holds back more frames than its latency"
        )


def between(earlier: Frame, later: Frame, fraction: Fraction) -> Frame:
    """Return `later`, timed `fraction` (0 to 1) of the way from `earlier`, with a time base fine enough for that."""
    assert 0 <= fraction <= 1, fraction
    start, end = earlier.pts * earlier.time_base, later.pts * later.time_base
    at = start + fraction * (end - start)
    base = later.time_base / (at / later.time_base).denominator
    return replace(later, pts=int(at / base), time_base=base)
