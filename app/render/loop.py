"""The loop of a render: every input frame through the engine into the writer, none dropped, a skipped one repeated.

Memory is bounded by the engine's ring: a frame is read only when the one before it was accepted. Knows no files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from app.media.source import SourceBrokenError
from app.media.writer import FrameWriter
from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control, Controls
from pipelines.core.types import Frame

from .frame_times import PUSH_TIME_BASE, Offered, Shown, frame_times
from .timeline_player import TimelinePlayer

_MAX_IDLE_TICKS = 10_000  # far more than any ring is deep: the engine would never take this frame
_CATCHING_UP = Control(steps=1, similarity_filter=False)
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameJob:
    """One frame to make. image: [H, W, 3] uint8 RGB of the engine's size; None: from the prompt alone.

    pts, duration: in the writer's time base.
    """

    index: int
    image: Picture | None
    pts: int
    duration: int


class RenderLoop:
    """Drives one stream of one engine into one writer."""

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        writer: FrameWriter,
        player: TimelinePlayer,
        *,
        finish: Callable[[Picture], Picture],
        progress: Callable[[], object],
        skip: int = 0,
    ) -> None:
        """player: of the stream's timeline. finish: from the engine's picture to the one that is written. progress:
        called after each written frame. skip: how many of the first frames are made and not written."""
        self._engine = engine
        self._stream = stream
        self._writer = writer
        self._player = player
        self._finish = finish
        self._progress = progress
        self._skip = skip
        self._times = frame_times(stream.info)
        self._last: Picture | None = None

    def run(self, jobs: Iterable[FrameJob], stop: Callable[[], bool]) -> bool:
        """True: all jobs are written. False: `stop` said so; what had come out by then is written.

        Raises SourceBrokenError after the frames that `jobs` gave before it are written.
        """
        remaining = iter(jobs)
        broken: SourceBrokenError | None = None
        while broken is None:
            try:
                job = next(remaining, None)
            except SourceBrokenError as error:
                broken = error
                continue
            if job is None:
                break
            if not self._offer(job, stop):
                return False
        self._drain()
        if broken is not None:
            raise broken
        return True

    def _offer(self, job: FrameJob, stop: Callable[[], bool]) -> bool:
        self._player.before(job.pts, has_image=job.image is not None, finished=self._write)
        idle_ticks = 0
        while not stop():
            skipped = self._stream.accounting.skipped
            if push(self._stream, job):
                offered = Offered(
                    index=job.index,
                    pts=job.pts,
                    duration=job.duration,
                    skipped=self._stream.accounting.skipped > skipped,
                    prompt_only=job.image is None,
                )
                self._times.offered(offered)
                self._write(self._stream.pull())
                return True
            self._engine.tick()
            idle_ticks += 1
            assert idle_ticks < _MAX_IDLE_TICKS, "the engine never takes the frame"
            self._write(self._stream.pull())
        return False

    def _drain(self) -> None:
        self._write(self._stream.flush())
        for shown in self._times.rest():
            self._put(shown)

    def _write(self, frames: list[Frame]) -> None:
        for frame in frames:
            for shown in self._times.finished(frame):
                if not shown.repeated:
                    self._last = self._finish(frame.image)
                self._put(shown)

    def _put(self, shown: Shown) -> None:
        """Write the newest picture; repeated: the similarity filter skipped what would have come after it."""
        assert self._last is not None, "the first frame is never skipped"
        if self._skip:
            self._skip -= 1
            return
        self._writer.write(self._last, shown.pts, shown.duration)
        self._progress()


def push(stream: Stream, job: FrameJob) -> bool:
    """Offer one job to the stream."""
    if job.image is None:
        return stream.generate()
    # The times of frames come from their index: see frame_times.
    return stream.push(Frame(image=job.image, pts=job.index, time_base=PUSH_TIME_BASE, seq=job.index))


def catch_up(
    engine: Engine,
    stream: Stream,
    times: Iterable[int],
    player: TimelinePlayer,
    *,
    prompt_only: bool,
    progress: Callable[[], object],
) -> None:
    """Bring a new stream to where it would be after frames of these pts: its noise counters, its noise walk, the
    timeline's changes and transitions.

    Runs the frames through at one step each and drops them. Needed only where `needs_catching_up` says so.
    """
    wanted = stream.controls
    image = None if prompt_only else np.zeros((stream.info.height, stream.info.width, 3), np.uint8)
    stream.apply(_CATCHING_UP)
    for index, pts in enumerate(times):
        done = player.before(pts, has_image=not prompt_only, finished=len, held=_CATCHING_UP.changes())
        for control in done:
            wanted = wanted.updated(control)
        while not push(stream, FrameJob(index=index, image=image, pts=index, duration=1)):
            engine.tick()
            stream.pull()
        progress()
    stream.flush()
    stream.apply(Control(steps=wanted.steps, similarity_filter=wanted.similarity_filter))


def needs_catching_up(states: Sequence[Controls], *, prompt_only: bool) -> bool:
    """Whether a frame depends on its number, by its noise or by a transition, in any state that a render has; so that a
    resumed stream has to catch up."""
    numbered = any(not state.seed_lock for state in states)
    walks = prompt_only and any(state.noise_walk_deg > 0 for state in states)
    glides = len(states) > 1 and any(state.transition_frames for state in states)
    return numbered or walks or glides


def prompt_jobs(start: int, frames: int) -> Iterator[FrameJob]:
    """Jobs `start` to `frames` of a prompt-only render; the time base is one frame."""
    return (FrameJob(index=index, image=None, pts=index, duration=1) for index in range(start, frames))


class StopSignal:
    """A context in which the first Ctrl-C or SIGTERM only asks to stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
