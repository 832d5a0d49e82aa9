"""Two custom frame stages: a logo in a corner, and an additional frame between every two.

    python examples/add_a_frame_stage.py out.mp4 "a robot on the beach"

Stages run after the engine, so they apply to every output: page, recording, push, render, replay of a take. To ship
one, move its class to a file in pipelines/stages/ and add a row to pipelines/stages/table.py, as `add_rows` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import av
import numpy as np

from pipelines.core.controls import Control
from pipelines.core.frame_stages import between
from pipelines.core.types import Frame
from pipelines.stages.table import MakeStage, StageSetting


class CornerLogo:
    """Draws a white square into the lower right corner of every frame, an eighth as high as the frame."""

    name = "corner-logo"
    rate = Fraction(1)
    latency_frames = 0

    def __init__(self, height: int) -> None:
        self._side_px = max(1, height // 8)

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        """Return copies of the frames with the logo."""
        return [replace(frame, image=self._marked(frame.image)) for frame in frames]

    def _marked(self, image: np.ndarray) -> np.ndarray:
        marked = image.copy()
        marked[-self._side_px :, -self._side_px :] = 255
        return marked

    def flush(self) -> list[Frame]:
        """Return nothing: no frame is held back."""
        return []

    def reset(self) -> None:
        """Do nothing: there is no state."""


class Doubler:
    """Doubles the frame rate: inserts the mean of every two consecutive frames.

    A frame is released together with the next one, hence the latency of one frame.
    """

    name = "double"
    rate = Fraction(2)
    latency_frames = 1

    def __init__(self) -> None:
        self._last: Frame | None = None

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        """For each frame return the preceding one and the mean of the two."""
        out = []
        for frame in frames:
            if self._last is not None:
                out += [self._last, self._blended(self._last, frame)]
            self._last = frame
        return out

    def _blended(self, earlier: Frame, later: Frame) -> Frame:
        mean = (earlier.image.astype(np.uint16) + later.image + 1) // 2
        return replace(between(earlier, later, Fraction(1, 2)), image=mean.astype(np.uint8))

    def flush(self) -> list[Frame]:
        """Return the last frame, which has no successor."""
        held = [] if self._last is None else [self._last]
        self._last = None
        return held

    def reset(self) -> None:
        """Forget the last frame."""
        self._last = None


def corner_logo(setting: StageSetting) -> MakeStage:
    """Called once for each engine. Returns what makes the stage of each stream."""
    return partial(CornerLogo, setting.height)


def double(setting: StageSetting) -> MakeStage:
    """A stage with a network would load it here, once for all streams of the engine."""
    return Doubler


def add_rows(table: dict[str, Callable[[StageSetting], MakeStage]]) -> None:
    """Add the two rows."""
    table["corner-logo"] = corner_logo
    table["double"] = double


def main(target: str, prompt: str) -> None:
    from pipelines.load import load_engine
    from pipelines.stages.table import STAGES

    add_rows(STAGES)
    engine = load_engine("mini-image", stages=("double", "corner-logo"))
    with engine.open(Control.of({"prompt": prompt}), frame_rate=Fraction(12)) as stream, av.open(target, "w") as out:
        info = stream.info
        picture = out.add_stream("libx264", rate=info.frame_rate)  # 24, because of the doubler
        picture.width, picture.height = info.width, info.height
        frames = []
        for _ in range(36):
            while not stream.generate():
                engine.tick()
                frames += stream.pull()
        for frame in [*frames, *stream.flush()]:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        out.mux(picture.encode())
        print(f"{target}: {info.stages}, {stream.accounting}")  # noqa: T201
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
