"""Owns the causal video engine: its streams, and the tick that advances each by one pass, batched where shapes match.

Independent of files, HTTP and the image engine. docs/video-engine.md describes a tick step by step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch

from cache.kv.plan import KVError
from cache.kv.policies import POLICIES, KVPolicy
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import ConditionerFactory
from pipelines.core.controls import Control
from pipelines.core.engine_base import EngineBase
from pipelines.core.errors import InputError, OutOfMemoryError, StreamError
from pipelines.core.out_of_memory import MemoryWatch
from pipelines.core.preparation import Preparation
from pipelines.core.tick_log import TickLog, TickRecord
from pipelines.core.tick_timings import TickTimings
from pipelines.core.transfers import Mark
from pipelines.stages.table import StageSetting, make_stages

from .chunks import ChunkSlot
from .model import VideoModel
from .options import VideoOptions
from .passes import PassRequest
from .schedules import PassPart
from .state import VideoCore
from .stream import VideoStream
from .video_log import row_records

Found = list[tuple[PassRequest, tuple[PassPart, ...]]]


class VideoEngine(EngineBase[VideoStream]):
    """Runs one causal video model for up to `core.streams` streams. conditioners: what can steer a chunk.
    policies: the table of KV policies; `options.policy` is a name in it.

    Raises ControlError, InputError, ModelError.
    """

    clear_errors = (InputError, KVError)

    def __init__(
        self,
        model: VideoModel,
        options: VideoOptions | None = None,
        *,
        tick_log: TickLog | None = None,
        conditioners: Sequence[ConditionerFactory] = CONDITIONERS,
        policies: Mapping[str, type[KVPolicy]] = POLICIES,
    ) -> None:
        options = options or VideoOptions()
        with torch.inference_mode(), MemoryWatch() as memory:
            self.core = VideoCore(model, options, tick_log, conditioners, policies)
        if memory.ran_out:
            raise OutOfMemoryError("There is too little memory for the engine.", _smaller(options, streams=0))
        super().__init__(self.core.log, Fraction(self.core.preset.frame_rate))
        setting = StageSetting(width=self.core.width, height=self.core.height, device=str(model.device))
        self._make_stages = make_stages(options.stages, setting)
        self._timings = TickTimings(self.core.log)
        with torch.inference_mode():
            self.core.announce_sizes()

    @property
    def preparation(self) -> Preparation:
        """That of the runtime."""
        return self.core.model.runtime.preparation

    def _make_stream(self, number: int, frame_rate: Fraction, control: Control) -> VideoStream:
        """Raises InputError if all rows are in use."""
        used = {stream.index for stream in self._streams.values()}
        free = [index for index in range(self.core.streams) if index not in used]
        if not free:
            raise InputError(
                f"All {self.core.streams} streams of this engine are in use.",
                "Close one, or load the engine with a larger max_streams.",
            )
        stages = [make() for make in self._make_stages]
        return VideoStream(self.core, number, free[0], frame_rate, control, stages, tick=self.tick, leave=self._forget)

    @torch.inference_mode()
    def tick(self) -> None:
        """Run one pass of every open stream that has work. If none has, nothing happens and the tick is not counted.

        Raises OutOfMemoryError, or StreamError if the failure belongs to one stream: close a stream, then call `tick`
        again before anything else; the other streams lose nothing.
        """
        self._timings.log_finished()
        if self.preparation.swap():
            self.core.executor.invalidate()
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
        """Return the velocities of each stream's requests."""
        requests = [request for own in wanted.values() for request in own]
        with MemoryWatch() as memory:
            velocities = iter(self.core.passes.run(requests) if requests else ())
        if memory.ran_out:
            raise self._out_of_memory(len(requests))
        return {number: [next(velocities) for _ in own] for number, own in wanted.items()}

    def _decode(self, done: Sequence[tuple[int, ChunkSlot]]) -> list[StreamError]:
        """Decode the chunks that are clean. Returns the errors of streams whose decoding failed; those are unusable."""
        failures = []
        for number, slot in done:
            try:
                with self._attribute_errors(self._streams[number]):
                    self._streams[number].decode(slot)
            except StreamError as error:
                failures.append(error)
        return failures

    def close(self) -> None:
        """Close all streams and stop what is being prepared."""
        closed = self._closed
        super().close()
        if not closed:
            self.preparation.close()

    def _check_storage(self) -> None:
        self.core.cache.check_integrity()

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
        self._timings.add(core.next_tick, marks)
        core.next_tick += 1

    # -- errors --------------------------------------------------------------------------------------------------------

    def _out_of_memory(self, passes: int) -> OutOfMemoryError:
        core = self.core
        return OutOfMemoryError(
            f"{core.model.device} has too little memory for {passes} passes of up to {core.preset.pass_frames} latent "
            f"frames at {core.width}x{core.height} with a window of {core.preset.window_frames}.",
            _smaller(core.options, streams=len(self._streams)),
        )


def _smaller(options: VideoOptions, *, streams: int) -> str:
    choices = [*(["close a stream"] if streams > 1 else []), "a smaller --size", "a smaller --window-frames"]
    choices += ["an 8-bit KV cache"] if options.storage != "int8" else []
    return f"Use {', or '.join(choices)}."
