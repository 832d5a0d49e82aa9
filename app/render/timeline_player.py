"""Owns when a render applies a timeline's changes: each before the first frame or chunk that begins at or after it.

Depends on one stream and its engine only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction

from pipelines.core.contracts import Engine, Stream
from pipelines.core.control_table import ENGINE_CONTROLS
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import InputError
from pipelines.core.types import Frame

from .timeline import Cue, Timeline

SLACK_S = Fraction(1, 1000)
"""How much early a change may be applied: files round frame times to their time base."""

_NOT_REHEARSED = frozenset((*ENGINE_CONTROLS, Controls.rewind_to.name))
"""Engine controls affect the whole engine; a rewind needs chunks to go back to."""


def rehearse(timeline: Timeline, engine: Engine, control: Control) -> None:
    """Apply all changes to a stream that renders nothing, so that invalid ones fail before the first frame.

    control: the render's initial controls. Raises TimelineError, which names the entry.
    """
    for cue in timeline.cues:
        if cue.control.paused:
            raise timeline.refusal(cue, InputError("paused would end the render.", "Omit it."))
    if not timeline.cues:
        return
    with engine.open(control=control) as stream:
        for cue in timeline.cues:
            _apply(timeline, cue, stream, cue.control.without(_NOT_REHEARSED))


def states(timeline: Timeline, first: Controls) -> list[Controls]:
    """`first`, and the controls after each change."""
    controls = [first]
    for cue in timeline.cues:
        controls.append(controls[-1].updated(cue.control))
    return controls


class TimelinePlayer:
    """Applies the changes of one render in order, each once."""

    def __init__(self, timeline: Timeline, engine: Engine, stream: Stream, time_base: Fraction) -> None:
        """time_base: of the frames' pts, in seconds."""
        self._timeline, self._engine, self._stream, self._time_base = timeline, engine, stream, time_base
        self._done = 0
        self._boundary = 0  # number of frames taken when the next chunk begins

    def before(
        self,
        pts: int,
        *,
        has_image: bool,
        finished: Callable[[list[Frame]], object],
        held: Iterable[str] = (),
    ) -> list[Control]:
        """Apply the changes due before the frame at `pts` is offered, if a chunk begins with it.

        Frames in flight are finished first and passed to `finished`, so that a change does not affect what began before
        it; overlapping chunks (step-batch, rolling) stay in flight and are affected from the next tick. held: controls
        that are not changed. Returns the changes, including the held controls. Raises TimelineError.
        """
        counts = self._stream.accounting
        if counts.taken - counts.skipped < self._boundary:
            return []
        if due := self._due(pts * self._time_base):
            while self._stream.busy:
                self._engine.tick()
                finished(self._stream.pull())
            for cue in due:
                _apply(self._timeline, cue, self._stream, cue.control.without(held))
            self._done += len(due)
        self._boundary = counts.taken - counts.skipped + self._chunk_frames(has_image=has_image)
        return [cue.control for cue in due]

    def _due(self, at_s: Fraction) -> tuple[Cue, ...]:
        cues = self._timeline.cues
        last = next((i for i in range(self._done, len(cues)) if cues[i].at_s > at_s + SLACK_S), len(cues))
        return cues[self._done : last]

    def _chunk_frames(self, *, has_image: bool) -> int:
        """Frames of the chunk that begins now. A first picture is a chunk of its own."""
        info = self._stream.info
        if has_image and info.engine == "video" and self._stream.controls.input_use == "first-frame":
            return 1
        return info.frames_per_chunk


def _apply(timeline: Timeline, cue: Cue, stream: Stream, control: Control) -> None:
    try:
        stream.apply(control)
    except InputError as error:
        raise timeline.refusal(cue, error) from error
