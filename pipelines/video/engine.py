"""Owns the causal video engine: its streams, and the tick that brings each one pass on, batched where shapes agree.

Knows no files, no HTTP and no other engine. docs/video-engine.md tells a tick in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch

from cache.kv.plan import KVError
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import ConditionerFactory
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, OutOfMemoryError, StreamError
from pipelines.core.tick_log import TickLog, TickRecord, TimingRecord
from pipelines.core.transfers import Mark
from pipelines.files.memory import is_out_of_memory

from .chunks import ChunkSlot
from .model import VideoModel
from .options import VideoOptions
from .passes import PassRequest
from .schedules import PassPart
from .state import VideoCore
from .stream import VideoStream
from .video_log import row_records

Found = list[tuple[PassRequest, tuple[PassPart, ...]]]


class VideoEngine:
    """Runs one causal video model for up to `core.streams` streams. conditioners: what may steer a chunk.

    Raises ControlError, InputError, ModelError.
    """

    def __init__(
        self,
        model: VideoModel,
        options: VideoOptions | None = None,
        *,
        tick_log: TickLog | None = None,
        conditioners: Sequence[ConditionerFactory] = CONDITIONERS,
    ) -> None:
        with torch.inference_mode(), _memory_for("the engine", options or VideoOptions()):
            self.core = VideoCore(model, options or VideoOptions(), tick_log, conditioners)
        self._streams: dict[int, VideoStream] = {}
        self._timings: deque[tuple[int, list[Mark]]] = deque()
        self._opened = 0
        self._closed = False

    @property
    def log(self) -> TickLog:
        """What happened, tick by tick."""
        return self.core.log

    @torch.inference_mode()
    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> VideoStream:
        """A new stream, with the model's defaults and then `control` applied.

        frame_rate: of prompt-only frames, in frames a second; None: the model's own. Raises ControlError, and opens
        nothing, when the controls do not fit together; InputError when all places are taken.
        """
        if self._closed:
            raise InputError("The engine is closed.", "Load it again.")
        rate = Fraction(self.core.preset.frame_rate) if frame_rate is None else frame_rate
        if rate <= 0:
            raise InputError(f"A frame rate of {rate} is not above 0.")
        used = {stream.index for stream in self._streams.values()}
        free = [index for index in range(self.core.streams) if index not in used]
        if not free:
            raise InputError(
                f"All {self.core.streams} streams of this engine are taken.",
                "Close one, or load the engine with a larger max_streams.",
            )
        stream = VideoStream(
            self.core, self._opened, free[0], rate, control or Control(), tick=self.tick, leave=self._forget
        )
        self._streams[self._opened] = stream
        self._opened += 1
        return stream

    @torch.inference_mode()
    def tick(self) -> None:
        """One pass of every open stream that has something to do. Without any nothing happens, and the tick is not
        counted.

        Raises OutOfMemoryError, or StreamError when one stream's own part fails: then close a stream and call it again
        before anything else; the others lose nothing.
        """
        self._log_timings()
        streams = {number: stream for number, stream in self._streams.items() if stream.has_work}
        if not streams:
            return
        marks = [self._mark()]
        found: dict[int, Found] = {}
        for number, stream in streams.items():
            with self._attribute_errors(stream):
                stream.prepare_tick()
                found[number] = stream.requests()
        marks.append(self._mark())
        results = self._pass({n: [request for request, _ in f] for n, f in found.items()})
        marks.append(self._mark())
        done: list[tuple[int, ChunkSlot]] = []
        for number, stream in streams.items():
            done += [(number, slot) for slot in stream.land(results[number])] if found[number] else []
        failures = self._decode(done)
        marks.append(self._mark())
        for number, slot in done:
            self._streams[number].finish(slot, marks[-1])
        self._log(found, done, marks)
        if failures:
            raise failures[0]

    def _pass(self, wanted: dict[int, list[PassRequest]]) -> dict[int, list[torch.Tensor]]:
        """The velocities of each stream's requests."""
        requests = [request for own in wanted.values() for request in own]
        try:
            velocities = iter(self.core.passes.run(requests) if requests else ())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        else:
            failed = False
        if failed:  # outside of the handler, whose traceback holds the tensors of the attempt
            raise self._out_of_memory(len(requests))
        return {number: [next(velocities) for _ in own] for number, own in wanted.items()}

    def _decode(self, done: Sequence[tuple[int, ChunkSlot]]) -> list[StreamError]:
        """The pictures of the chunks that ended. A stream whose decoding fails is of no use any more."""
        failures = []
        for number, slot in done:
            try:
                with self._attribute_errors(self._streams[number]):
                    self._streams[number].decode(slot)
            except StreamError as error:
                failures.append(error)
        return failures

    def close(self) -> None:
        """Close all streams and let the model go."""
        for stream in tuple(self._streams.values()):
            stream.close()
        self._closed = True

    def _forget(self, number: int) -> None:
        del self._streams[number]

    # -- the log -------------------------------------------------------------------------------------------------------

    def _mark(self) -> Mark:
        mark = Mark(self.core.model.device)
        mark.record()
        return mark

    def _log(self, found: dict[int, Found], done: Sequence[tuple[int, ChunkSlot]], marks: list[Mark]) -> None:
        core = self.core
        rows = [row for number, f in found.items() for row in row_records(number, f, guided=core.branches == 2)]
        finished = tuple((number, slot.birth.number) for number, slot in done)
        core.log.add(TickRecord(tick=core.next_tick, rows=tuple(rows), finished=finished))
        self._timings.append((core.next_tick, marks))
        core.next_tick += 1
        self._log_timings()

    def _log_timings(self) -> None:
        """Log the timings of the ticks that the device has finished."""
        while self._timings and self._timings[0][1][-1].passed():
            tick, (start, encoded, stepped, decoded) = self._timings.popleft()
            self.core.log.add(
                TimingRecord(
                    tick=tick,
                    encode_ms=encoded.ms_since(start),
                    denoise_ms=stepped.ms_since(encoded),
                    decode_ms=decoded.ms_since(stepped),
                )
            )

    # -- errors --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _attribute_errors(self, stream: VideoStream) -> Iterator[None]:
        """What goes wrong in one stream's own part is its error."""
        try:
            yield
        except Exception as error:  # whatever it is, it is this stream's error and no other's
            kind = "" if isinstance(error, InputError | KVError) else f"{type(error).__name__}: "
            raise StreamError(f"The stream failed: {kind}{error}", "Open a new one.", stream=stream) from error

    def _out_of_memory(self, passes: int) -> OutOfMemoryError:
        core = self.core
        return OutOfMemoryError(
            f"{core.model.device} has too little memory for {passes} passes of up to {core.preset.pass_frames} latent "
            f"frames at {core.width}x{core.height} with a window of {core.preset.window_frames}.",
            _smaller(core.options, streams=len(self._streams)),
        )


def _smaller(options: VideoOptions, *, streams: int) -> str:
    choices = [*(["close a stream"] if streams > 1 else []), "a smaller --size", "a smaller --window-frames"]
    choices += ["keys and values as 8-bit integers"] if options.storage != "int8" else []
    return f"Use {', or '.join(choices)}."


@contextmanager
def _memory_for(what: str, options: VideoOptions) -> Iterator[None]:
    """Running out of memory while `what` is made, said as such."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"There is too little memory for {what}.", _smaller(options, streams=0)) from None
