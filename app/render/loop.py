"""The loop of a render: every input frame through the engine into the writer; none is dropped, skipped ones repeat.

Memory is bounded by the engine's ring: a frame is read only once the one before it was accepted. Independent of files.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

import numpy as np

from app.media.source import SourceBrokenError
from app.media.writer import FrameWriter
from pipelines.core.contracts import Engine, Stream
from pipelines.core.controls import Control, Controls
from pipelines.core.types import Frame, Picture

from .frame_times import PUSH_TIME_BASE, Offered, Shown, frame_times
from .timeline_player import TimelinePlayer

_MAX_IDLE_TICKS = 10_000  # far more than the depth of any ring: the engine would never accept this frame
_CATCHING_UP = Control(steps=1, similarity_filter=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameJob:
    """One frame to render. image: [H, W, 3] uint8 RGB at the engine's size; None: from the prompt alone.

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
        finish: Callable[[Frame], Picture],
        progress: Callable[[], object],
        delivered: Callable[[int], object] = bool,
        skip: int = 0,
    ) -> None:
        """player: plays the stream's timeline. finish: makes the picture to write of the engine's frame. progress:
        called after each written frame. delivered: called with the number of frames whenever the engine has finished
        some and they are written. skip: how many of the first frames are rendered and not written."""
        self._engine = engine
        self._stream = stream
        self._writer = writer
        self._player = player
        self._finish = finish
        self._progress = progress
        self._delivered = delivered
        self._skip = skip
        self._times = frame_times(stream.info)
        self._last: Picture | None = None

    def run(self, jobs: Iterable[FrameJob], stop: Callable[[], bool]) -> bool:
        """True: all jobs are written. False: `stop` returned true; the frames finished by then are written.

        Raises SourceBrokenError once the frames that `jobs` gave before it are written.
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
            assert idle_ticks < _MAX_IDLE_TICKS, "the engine never accepts the frame"
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
                    self._last = self._finish(frame)
                self._put(shown)
        if frames:
            self._delivered(len(frames))

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
    """Bring a new stream to its state after frames with these pts: noise counters, noise walk, the timeline's changes
    and transitions.

    Renders the frames with one step each and drops them. Only if `needs_catching_up`.
    """
    target = stream.controls
    image = None if prompt_only else np.zeros((stream.info.height, stream.info.width, 3), np.uint8)
    stream.apply(_CATCHING_UP)
    for index, pts in enumerate(times):
        done = player.before(pts, has_image=not prompt_only, finished=len, held=_CATCHING_UP.changes())
        for control in done:
            target = target.updated(control)
        while not push(stream, FrameJob(index=index, image=image, pts=index, duration=1)):
            engine.tick()
            stream.pull()
        progress()
    stream.flush()
    stream.apply(Control(steps=target.steps, similarity_filter=target.similarity_filter))


def needs_catching_up(states: Sequence[Controls], *, prompt_only: bool) -> bool:
    """Whether in any of the states a frame depends on its number, through noise or a transition: then a resumed stream
    has to catch up."""
    numbered = any(not state.seed_lock for state in states)
    walks = prompt_only and any(state.noise_walk_deg > 0 for state in states)
    glides = len(states) > 1 and any(state.transition_frames for state in states)
    return numbered or walks or glides


def prompt_jobs(start: int, frames: int) -> Iterator[FrameJob]:
    """Jobs `start` to `frames` - 1 of a prompt-only render; the time base is one frame."""
    return (FrameJob(index=index, image=None, pts=index, duration=1) for index in range(start, frames))


class StopSignal:
    """A context in which the first Ctrl-C or SIGTERM requests a stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def __call__(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
