"""One render from request to finished file: opens source, engine and writer, runs the loop, always cleans up.

Independent of the command line. The caller passes the function that loads the engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from app.media.containers import Container, FileKind, container_for
from app.media.geometry import Placement, Size
from app.media.open_source import open_source
from app.media.open_writer import OutputPlan, has_frames, no_sound, open_writer
from app.media.picture_reader import read_picture
from app.media.sound_choice import Sound
from app.media.source import Source, SourceBrokenError
from app.media.writer import FrameWriter
from pipelines.core.contracts import Engine, Notify, Stream
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, OutputError
from pipelines.core.preparation import Preparation
from pipelines.core.types import Picture

from .forecast import CannotEndError, Forecast, check_output_size
from .framing import Framing
from .loop import FrameJob, RenderLoop, StopSignal, catch_up, needs_catching_up, prompt_jobs
from .record import RenderRecord, check_apart
from .request import RenderRequest
from .settings import chosen_settings, requested_settings
from .timeline import Timeline
from .timeline_player import TimelinePlayer, rehearse, states

_LARGE_PX = 2**20


def render(request: RenderRequest, load: Callable[..., Engine], say: Notify) -> int:
    """Returns the exit status: 0 done, 1 the source broke off (the frames before that are written), 130 interrupted.

    load: pipelines.load.load_engine or one like it. say: takes messages for the user. Raises ZoetropeError.
    """
    kind = container_for(request.output, named_as_folder=request.as_folder)
    if request.source is not None:
        check_apart(request.source, request.output)
    timeline = Timeline.read(request.timeline) if request.timeline is not None else Timeline()
    source = None
    if request.source is not None:
        source = open_source(request.source, request.frame_rate, max_px=request.max_px)
        for note in source.info.notes:
            say(note)
    record = RenderRecord.open(request.output, is_folder=kind is None, force=request.force, resume=request.resume)
    record.agree(requested_settings(request, kind))
    engine = load(request.model, request.engine, notice=say)
    try:
        _choose_forms(record, engine.preparation, say)
        rehearse(timeline, engine, request.control)
        rate = source.info.frame_rate if source is not None else request.frame_rate
        with engine.open(control=request.control, frame_rate=rate) as stream:
            record.agree(chosen_settings(stream.info))
            return _Render(request, kind, source, record, engine, stream, timeline, say).run()
    finally:
        engine.close()


def _choose_forms(record: RenderRecord, preparation: Preparation, say: Notify) -> None:
    """Let all frames be made by the same plans: those that are stored now, or those of the render that is resumed.

    Raises ModelError if the latter cannot be had.
    """
    if record.resumed:
        if absent := preparation.missing(record.forms):
            plans = ", ".join(f"{form.plan} ({form.part})" for form in absent)
            raise InputError(
                f"The interrupted render ran with plans that are not stored now: {plans}.",
                "Put them back (ZOETROPE_PLANS says where), or start over with --force.",
            )
        preparation.hold()
        for form in record.forms:
            if caution := preparation.take_over(form):
                say(caution)
        preparation.swap()
        return
    missing = preparation.freeze()
    record.forms = preparation.forms
    if missing:
        say(f"Networks: {preparation.status.runs}. Faster ones are being built for the next render.")


class _Render:
    """A render in progress."""

    def __init__(
        self,
        request: RenderRequest,
        kind: FileKind | None,
        source: Source | None,
        record: RenderRecord,
        engine: Engine,
        stream: Stream,
        timeline: Timeline,
        say: Notify,
    ) -> None:
        self._request = request
        self._kind = kind
        self._source = source
        self._record = record
        self._engine = engine
        self._stream = stream
        self._timeline = timeline
        self._say = say
        info = stream.info
        self._native = (info.width, info.height)
        self._rate = source.info.frame_rate if source is not None else info.generate_rate
        self._time_base = source.info.time_base if source is not None else 1 / info.generate_rate
        self._player = TimelinePlayer(timeline, engine, stream, self._time_base)
        self._framing = Framing(self._native, source.info if source is not None else None, request.aspect)
        self._frames = request.frames
        if request.seconds is not None and request.frames is None:
            self._frames = max(1, round(request.seconds * info.generate_rate))
        made = source.info.frames if source is not None else self._frames
        self._total = made and round(made * info.stage_rate)
        self._restarts = info.engine == "video" or bool(info.stages)  # every frame depends on those before it

    def run(self) -> int:
        """From opening the writer to the end of the file. Returns the exit status."""
        info = self._stream.info
        self._say(f"{info.model} at {info.width}x{info.height}, {info.dtype} on {info.device}, {info.backend} backend")
        if self._total and info.width * info.height > _LARGE_PX:
            self._say(f"{self._total} large frames: how long they take is said once the first ones are made.")
        even_sides = isinstance(self._kind, Container)
        size = self._framing.choose_output(self._request.out_size, even_sides=even_sides)
        check_output_size(self._kind, size)
        keep = self._record.resumed and self._has_frames()
        self._record.begin()
        writer = self._open_writer(size, keep)
        self._pass_on(writer)
        with StopSignal() as stop, self._progress_bar(writer.frames) as bar:
            try:
                start = writer.frames
                forecast = self._forecast(0 if self._restarts else start)
                if not self._restarts:
                    self._catch_up(start)
                loop = RenderLoop(
                    self._engine,
                    self._stream,
                    writer,
                    self._player,
                    finish=self._framing.finished,
                    progress=lambda: bar.update(1),
                    delivered=lambda frames: self._measure(forecast, frames, writer, bar),
                    skip=start if self._restarts else 0,
                )
                complete = loop.run(self._jobs(0 if self._restarts else start), stop)
            except SourceBrokenError as error:
                if writer.frames == 0:
                    self._discard(writer)
                    raise
                return self._end_broken(writer, error)
            except CannotEndError:
                self._suspend(writer)
                raise
            except OutputError:
                self._abandon(writer)
                raise
            except BaseException:  # on any other error, keep the rendered frames for --resume
                self._suspend(writer)
                raise
        return self._end_complete(writer) if complete else self._end_stopped(writer)

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _open_writer(self, size: Size, keep: bool) -> FrameWriter:
        source, sound = self._source, None
        if source is not None and self._request.source is not None and source.info.has_sound:
            if dropped := no_sound(self._kind):
                self._say(dropped)
            sound = Sound(path=self._request.source, origin_s=source.info.origin_s)
        rate = self._stream.info.stage_rate
        plan = OutputPlan(
            output=self._request.output,
            kind=self._kind,
            scratch=self._record.scratch,
            size=size,
            frame_rate=self._rate * rate,
            time_base=self._time_base / rate.numerator,
            sound=sound,
        )
        try:
            return open_writer(plan, keep=keep, keep_last_piece=self._record.whole_frames is not None)
        except OutputError:
            self._clear()
            raise

    def _jobs(self, start: int) -> Iterator[FrameJob]:
        if self._source is None:
            assert self._frames is not None
            if self._request.first_picture is not None:
                yield FrameJob(index=0, image=self._first_picture(self._request.first_picture), pts=0, duration=1)
                start = 1
            yield from prompt_jobs(start, self._frames)
            return
        for frame in self._source.frames(start):
            image = self._framing.placed(frame.index, frame.image)
            yield FrameJob(index=frame.index, image=image, pts=frame.pts, duration=frame.duration)

    def _first_picture(self, file: Path) -> Picture:
        """The picture that the video begins with, at the engine's size."""
        self._stream.apply(Control(input_use="first-frame"))
        image = read_picture(file, max_px=self._request.max_px)
        size = (image.shape[1], image.shape[0])
        return Placement.plan(size, self._native, self._request.aspect, 1.0).apply(image)

    def _catch_up(self, frames: int) -> None:
        """Bring the stream to its state after `frames` frames."""
        prompt_only, controls = self._source is None, states(self._timeline, self._stream.controls)
        if not frames or not needs_catching_up(controls, prompt_only=prompt_only):
            return
        times: Iterable[int] = range(frames)
        if self._source is not None and self._timeline.cues:
            times = (frame.pts for frame in islice(self._source.frames(), frames))
        with tqdm(total=frames, unit="frame", desc="catching up", leave=False, file=sys.stderr) as bar:
            catch_up(
                self._engine,
                self._stream,
                times,
                self._player,
                prompt_only=prompt_only,
                progress=lambda: bar.update(1),
            )

    def _forecast(self, done: int) -> Forecast:
        """done: frames that need not be made."""
        copies = 1 if self._kind is None else 2  # a finished file is made beside the growing one
        return Forecast(self._request.output, total=self._total, done=done, copies=copies, say=self._tell)

    def _measure(self, forecast: Forecast, frames: int, writer: FrameWriter, bar: tqdm[None]) -> None:
        forecast.delivered(frames, writer.frames)
        bar.set_postfix_str(forecast.memory, refresh=False)

    def _tell(self, sentence: str) -> None:
        """Say something while the line of progress is shown."""
        with tqdm.external_write_mode(file=sys.stderr):
            self._say(sentence)

    def _progress_bar(self, done: int) -> tqdm[None]:
        slow = not sys.stderr.isatty()  # in a log: an occasional line
        return tqdm(
            total=self._total,
            initial=done,
            unit="frame",
            desc=self._request.output.name,
            mininterval=5.0 if slow else 0.2,
            file=sys.stderr,
        )

    # -- the ends ------------------------------------------------------------------------------------------------------

    def _end_complete(self, writer: FrameWriter) -> int:
        if writer.frames == 0:
            self._discard(writer)
            raise InputError(f"{self._request.source} has no frames.", "Give a video or pictures.")
        self._finish(writer, complete=True)
        self._say(f"{self._request.output}: {writer.frames} frames.")
        return 0

    def _end_broken(self, writer: FrameWriter, error: SourceBrokenError) -> int:
        self._finish(writer, complete=False)
        self._say(str(error))
        self._say(f"{self._request.output}: {writer.frames} frames, up to the point where the input broke off.")
        return 1

    def _end_stopped(self, writer: FrameWriter) -> int:
        if writer.frames == 0:
            self._discard(writer)
            self._say("Interrupted before the first frame: nothing was written.")
            return 130
        writer.suspend()
        self._pass_on(writer)
        self._record.pause(writer.frames)
        self._say(
            f"Interrupted. {self._request.output} has {writer.frames} frames and is playable; --resume continues it."
        )
        return 130

    def _finish(self, writer: FrameWriter, *, complete: bool) -> None:
        try:
            writer.finish(complete=complete)
        except OutputError:
            self._abandon(writer)
            raise
        self._pass_on(writer)
        self._record.end()

    def _pass_on(self, writer: FrameWriter) -> None:
        for remark in writer.remarks():
            self._say(remark)

    def _suspend(self, writer: FrameWriter) -> None:
        """Keep what was rendered, if anything was; the original error is already being raised."""
        if writer.frames == 0:
            self._discard(writer)
            return
        try:
            writer.suspend()
            self._record.pause(writer.frames)
        except OutputError:
            self._abandon(writer)

    def _abandon(self, writer: FrameWriter) -> None:
        """Keep what can be resumed; the original error says whether there is anything."""
        writer.abandon()
        self._clear()

    def _discard(self, writer: FrameWriter) -> None:
        """Nothing was rendered: remove all files."""
        writer.abandon()
        self._remove()

    def _clear(self) -> None:
        """Remove the files of a render that left nothing to resume."""
        if not self._has_frames():
            self._remove()

    def _remove(self) -> None:
        if self._request.output.is_file():
            self._request.output.unlink()
        self._record.end()

    def _has_frames(self) -> bool:
        return has_frames(self._request.output, self._kind, self._record.scratch)
