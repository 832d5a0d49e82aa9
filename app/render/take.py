"""`zoetrope render --take`: loads the engine that a take names, replays the take and writes the frames.

Reports what differs from the machine that recorded it, and how many frames are identical. Independent of the command
line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from app.media.containers import Container, container_for
from app.media.geometry import Aspect, Placement, even, output_placement
from app.media.open_writer import OutputPlan, open_writer
from app.media.writer import FrameWriter
from app.takes.machine import describe_machine, differences, recorded_engine
from app.takes.reader import Take, read_take
from app.takes.records import Opened
from app.takes.replay import Replay, ReplayCounts, ReplayedFrame, ReplayOptions
from pipelines.core.contracts import Engine, Notify
from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import StreamInfo
from pipelines.files.loader_options import LoaderOptions
from pipelines.kinds import kind_of

from .loop import StopSignal
from .record import RenderRecord

_TIME_BASE = Fraction(1, 1000)
_KEY_FRAME_RATE = Fraction(24)
_MAX_LAST_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRequest:
    """take: its folder. steps: 0 for the take's own. size: (width, height), None for the take's own. runs_on: device,
    dtype and backend that override the take's."""

    take: Path
    output: Path
    as_folder: bool = False
    fill_drops: bool = False
    steps: int = 0
    size: tuple[int, int] | None = None
    runs_on: Mapping[str, str]
    allow_pickle: bool = False
    force: bool = False


def render_take(request: TakeRequest, load: Callable[..., Engine], say: Notify) -> int:
    """Returns the exit status: 0 done, 130 interrupted (the frames before that are written).

    load: pipelines.load.load_engine or compatible. say: takes messages for the user. Raises ZoetropeError.
    """
    take = read_take(request.take)
    record = RenderRecord.open(
        request.output,
        is_folder=container_for(request.output, named_as_folder=request.as_folder) is None,
        force=request.force,
        resume=False,
    )
    model, options = _engine_of(take.opened, request)
    threads = _use_threads(model, take.opened.machine)
    engine = load(model, options, notice=say)
    try:
        with engine.open() as probe:
            info = probe.info
        _warn(take, describe_machine(model, options, info, threads), say)
        resized = (info.width, info.height) != (take.opened.width, take.opened.height)
        wanted = ReplayOptions(
            fill_drops=request.fill_drops,
            steps=request.steps,
            resized=resized,
            other_backend=info.backend != take.opened.machine.get("backend", info.backend),
        )
        replay = Replay(take, engine, wanted)
        complete = _write(request, replay, record, info, say)
        say(_verdict(replay.counts, same=wanted.same))
    finally:
        engine.close()
    return 0 if complete else 130


def _engine_of(opened: Opened, request: TakeRequest) -> tuple[str, LoaderOptions]:
    """The model and the loader's options: the take's own, overridden by the request."""
    model, options = recorded_engine(opened.machine)
    width, height = request.size or (opened.width, opened.height)
    runs_on = {name: str(opened.machine.get(name, "auto")) for name in ("device", "dtype", "backend")}
    asked = {**runs_on, **request.runs_on, "allow_pickle": request.allow_pickle}
    return model, replace(options, width=width, height=height).changed(asked)


def _use_threads(model: str, machine: Mapping[str, object]) -> int:
    """As many threads as live: another split of the sums rounds differently."""
    threads = machine.get("threads", 1)
    if not isinstance(threads, int) or threads < 1:
        return 1
    return kind_of(model).use_threads(threads)


def _warn(take: Take, now: Mapping[str, object], say: Notify) -> None:
    found = [text for text in differences(take.opened.machine, now) if not text.startswith(("loader ", "size "))]
    if found:
        say(f"Not the same setup as live, so frames may differ: {'; '.join(found)}.")
    if not take.complete:
        say("The recording was cut off; the part that was written is rendered.")


def _write(request: TakeRequest, replay: Replay, record: RenderRecord, info: StreamInfo, say: Notify) -> bool:
    """True: rendered to the end. False: interrupted."""
    kind = container_for(request.output, named_as_folder=request.as_folder)
    native = (info.width, info.height)
    size = even(native) if isinstance(kind, Container) else native
    placement = output_placement(native, None, size, Aspect.PAD)
    record.agree({"take": request.take.name})
    record.begin()
    plan = OutputPlan(
        output=request.output,
        kind=kind,
        scratch=record.scratch,
        size=placement.target,
        frame_rate=_KEY_FRAME_RATE,
        time_base=_TIME_BASE,
        resumable=False,
    )
    try:
        writer = open_writer(plan, keep=False, keep_last_piece=False)
    except BaseException:  # interrupts too: clean up, then raise again
        record.end()
        raise
    try:
        with StopSignal() as stop, closing(replay.frames()) as frames:
            complete = _copy(frames, writer, placement, stop, request.output.name)
        if writer.frames == 0:
            raise InputError("No frame was finished in this take.", "It was too short.")
        writer.finish(complete=complete)
        for remark in writer.remarks():
            say(remark)
    except BaseException as error:  # interrupts too: clean up, then raise again
        _abandon(writer, request.output, error)
        record.end()
        raise
    record.end()
    return complete


def _abandon(writer: FrameWriter, output: Path, error: BaseException) -> None:
    writer.abandon()
    if writer.frames == 0 and output.is_file():
        output.unlink()
    elif not isinstance(error, OutputError) and output.is_dir() and not any(output.iterdir()):
        output.rmdir()


def _copy(
    frames: Generator[ReplayedFrame], writer: FrameWriter, placement: Placement, stop: Callable[[], bool], name: str
) -> bool:
    """Write each frame from its source's capture time to the next frame's."""
    slow = not sys.stderr.isatty()
    pending: ReplayedFrame | None = None
    start_ns, at_ms, duration_ms = 0, 0, round(1000 / _KEY_FRAME_RATE)
    with tqdm(unit="frame", desc=name, mininterval=5.0 if slow else 0.2, file=sys.stderr) as bar:
        for frame in frames:
            if stop():
                break
            if pending is None:
                start_ns = frame.time_ns
            else:
                next_ms = max(at_ms + 1, round((frame.time_ns - start_ns) / 1e6))
                duration_ms = next_ms - at_ms
                writer.write(placement.apply(pending.image), at_ms, duration_ms)
                at_ms = next_ms
            pending = frame
            bar.update(1)
        else:
            if pending is not None:
                writer.write(placement.apply(pending.image), at_ms, min(duration_ms, _MAX_LAST_MS))
            return True
    return False


def _verdict(counts: ReplayCounts, *, same: bool) -> str:
    notes = []
    if counts.batches:
        notes.append(f"{counts.batches} ticks shared the batch with other sessions, which changes rounding")
    if counts.inputs:
        notes.append(f"{counts.inputs} inputs have different pixels than live")
    if counts.verdicts:
        notes.append(f"the similarity filter decided differently on {counts.verdicts} inputs")
    notes += sorted(text.rstrip(".") for text in counts.cautions)
    if not same:
        text = "The take was rendered with changes, so its frames are not compared with the live ones"
    else:
        text = f"{counts.identical} frames identical to the live ones, {counts.different} different"
        text += f", {counts.unknown} without a live one to compare with" if counts.unknown else ""
    return "; ".join([text, *notes]) + "."
