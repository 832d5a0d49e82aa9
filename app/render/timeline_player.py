"""Owns when a timeline's changes are made in a render: before the first frame or chunk that begins at or after each.

Knows one stream and its engine; no file and no writer.
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
"""How much earlier than its time a change may be made: files round the times of frames to their time base."""

_NOT_REHEARSED = frozenset((*ENGINE_CONTROLS, Controls.rewind_to.name))
"""Those change the engine; a rewind needs chunks to go back to."""


def rehearse(timeline: Timeline, engine: Engine, control: Control) -> None:
    """Apply all changes to a stream that makes nothing, so that what cannot be is known before the first frame.

    control: what the render begins with. Raises TimelineError, which names the entry.
    """
    for cue in timeline.cues:
        if cue.control.paused:
            raise timeline.refusal(cue, InputError("paused would end the render.", "Leave it out."))
    if not timeline.cues:
        return
    with engine.open(control=control) as stream:
        for cue in timeline.cues:
            _apply(timeline, cue, stream, cue.control.without(_NOT_REHEARSED))


def states(timeline: Timeline, first: Controls) -> list[Controls]:
    """`first`, and the controls after each change."""
    found = [first]
    for cue in timeline.cues:
        found.append(found[-1].updated(cue.control))
    return found


class TimelinePlayer:
    """Makes the changes of one render in their order; each is made once."""

    def __init__(self, timeline: Timeline, engine: Engine, stream: Stream, time_base: Fraction) -> None:
        """time_base: of the frames' pts, in seconds."""
        self._timeline, self._engine, self._stream, self._time_base = timeline, engine, stream, time_base
        self._done = 0
        self._boundary = 0  # frames taken when the next chunk begins to fill

    def before(
        self,
        pts: int,
        *,
        has_image: bool,
        finished: Callable[[list[Frame]], object],
        held: Iterable[str] = (),
    ) -> list[Control]:
        """Make the changes that are due before the frame at `pts` is offered; only where a chunk begins with it.

        What was taken before is brought to its end first and handed to `finished`, so that a change is felt by nothing
        that began before its time: of overlapping chunks (step-batch, rolling) those in flight stay, and feel what is
        felt at the next tick. held: controls that are left as they are. Returns the changes, with those. Raises
        TimelineError.
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
        """Frames of the chunk that begins now. A picture with which a video begins is a chunk of its own."""
        info = self._stream.info
        if has_image and info.engine == "video" and self._stream.controls.input_use == "first-frame":
            return 1
        return info.frames_per_chunk


def _apply(timeline: Timeline, cue: Cue, stream: Stream, control: Control) -> None:
    try:
        stream.apply(control)
    except InputError as error:
        raise timeline.refusal(cue, error) from error
