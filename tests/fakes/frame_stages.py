"""Frame stages that drop, delay and resize frames, for tests of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from examples.add_a_frame_stage import add_rows
from pipelines.core.contracts import Engine
from pipelines.core.types import Frame
from pipelines.identity import IdentityEngine
from pipelines.image.engine import ImageEngine
from pipelines.stages.table import STAGES
from tests.fakes.image_model import SIDE_PX, cheap_model
from tests.fakes.video_engine import small_engine


class EverySecond:
    """Keeps the first of every two frames and drops the second."""

    name = "every-second"
    rate = Fraction(1, 2)
    latency_frames = 0

    def __init__(self) -> None:
        self._seen = 0

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        first = self._seen
        self._seen += len(frames)
        return [frame for number, frame in enumerate(frames, first) if number % 2 == 0]

    def flush(self) -> list[Frame]:
        return []

    def reset(self) -> None:
        self._seen = 0


class Smooth:
    """Averages each frame with the two after it: keeps the frame count, with a latency of two frames."""

    name = "smooth"
    rate = Fraction(1)
    latency_frames = 2

    def __init__(self) -> None:
        self._held: list[Frame] = []

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        out = []
        for frame in frames:
            self._held.append(frame)
            if len(self._held) == 3:
                out.append(self._mean())
        return out

    def _mean(self) -> Frame:
        image = np.mean([frame.image for frame in self._held], axis=0).astype(np.uint8)
        return replace(self._held.pop(0), image=image)

    def flush(self) -> list[Frame]:
        return [self._mean() for _ in range(len(self._held))]

    def reset(self) -> None:
        self._held.clear()


class Shrinking:
    """Violates the contract: changes the size of frames."""

    name = "shrinking"
    rate = Fraction(1)
    latency_frames = 0

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        return [replace(frame, image=frame.image[::2]) for frame in frames]

    def flush(self) -> list[Frame]:
        return []

    def reset(self) -> None: ...


def add_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the rows of the example and of this file to the table, for one test."""
    added = dict(STAGES)
    add_rows(added)
    for kind in (EverySecond, Smooth, Shrinking):
        added[kind.name] = lambda setting, kind=kind: kind
    for name, row in added.items():
        monkeypatch.setitem(STAGES, name, row)


def engine_of(kind: str, *stages: str) -> Engine:
    if kind == "identity":
        return IdentityEngine(width=SIDE_PX, height=SIDE_PX, stages=stages)
    if kind == "video":
        return small_engine(stages=stages)
    return ImageEngine(cheap_model(), frames_per_slot=2 if kind == "image of 2" else 1, stages=stages)
