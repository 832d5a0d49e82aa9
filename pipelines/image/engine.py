"""Owns the step-batched image engine: its streams, and the tick that advances all their slots as one batch.

Knows no files, no HTTP and no other engine. docs/engine.md tells a tick in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import torch

from pipelines.core.controls import Control
from pipelines.core.errors import InputError, OutOfMemoryError, StreamError
from pipelines.core.tick_log import TickLog
from pipelines.files.memory import is_out_of_memory, what_would_fit

from .model import ImageModel
from .state import ImageCore
from .stream import ImageStream
from .tick import TickRunner


class ImageEngine:
    """Runs one image model for any number of streams, which share `max_slots` slots.

    width, height: pixels, multiples of the codec's factor; 0: the model's own.
    work_dtype: of latents and formula; float32 except in tests.
    Raises ControlError or InputError for sizes that cannot be.
    """

    def __init__(
        self,
        model: ImageModel,
        *,
        width: int = 0,
        height: int = 0,
        frames_per_slot: int = 1,
        max_slots: int = 8,
        tick_log: TickLog | None = None,
        work_dtype: torch.dtype = torch.float32,
    ) -> None:
        with torch.inference_mode():
            self.core = ImageCore(
                model,
                width=width,
                height=height,
                frames_per_slot=frames_per_slot,
                max_slots=max_slots,
                tick_log=tick_log,
                work_dtype=work_dtype,
            )
            self._runner = TickRunner(self.core)
        self._streams: dict[int, ImageStream] = {}
        self._opened = 0
        self._closed = False
        self._max_run = 0  # slots in the largest batch that has run
        self._short = False  # memory ran out: what the next stream to close held goes back to the device

    @property
    def log(self) -> TickLog:
        """What happened, tick by tick."""
        return self.core.log

    @torch.inference_mode()
    def open(self, control: Control | None = None, frame_rate: Fraction | None = None) -> ImageStream:
        """A new stream, with the model's defaults and then `control` applied.

        frame_rate: of prompt-only frames, in frames a second; None: 24. Raises ControlError, and opens nothing, when
        the controls do not fit together.
        """
        if self._closed:
            raise InputError("The engine is closed.", "Load it again.")
        rate = Fraction(24) if frame_rate is None else frame_rate
        if rate <= 0:
            raise InputError(f"A frame rate of {rate} is not above 0.")
        stream = ImageStream(self.core, self._opened, rate, control or Control(), tick=self.tick, leave=self._forget)
        self._streams[self._opened] = stream
        self._opened += 1
        return stream

    @torch.inference_mode()
    def tick(self) -> None:
        """Advance every slot of every open stream by one step, as one batch. Without any slot nothing happens, and the
        tick is not counted.

        Raises OutOfMemoryError, or StreamError when one stream's own part fails: then close a stream and call it again
        before anything else, and the others lose and repeat nothing.
        """
        self._runner.log_timings()
        streams = [s for s in self._streams.values() if s.active]
        if not streams:
            return
        for stream in streams:
            with self._attribute_errors(stream):
                stream.prepare_tick()
        owners = [stream for stream in streams for _ in stream.active]
        slots = [slot for stream in streams for slot in stream.active]
        scales = [stream.controls.guidance_scale for stream in owners]
        deltas = [stream.controls.guidance_delta for stream in owners]
        try:
            finished = self._runner.run(slots, scales, deltas)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error)
        else:
            failed = ""
        if failed:  # outside of the handler, whose traceback holds the tensors of the attempt
            self._short = True
            raise self._out_of_memory(streams)
        self._max_run = max(self._max_run, len(slots))
        done = dict(finished)
        failures = []
        for stream in streams:  # the tick has run: each must hear of it
            try:
                with self._attribute_errors(stream):
                    stream.finish_tick(done)
            except StreamError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Close all streams and let the model go."""
        for stream in tuple(self._streams.values()):
            stream.close()
        if not self._closed:
            self.core.executor.invalidate()
        self._closed = True

    def _forget(self, number: int) -> None:
        del self._streams[number]
        if self._short and self.core.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self._short = False

    @contextmanager
    def _attribute_errors(self, stream: ImageStream) -> Iterator[None]:
        """What goes wrong in one stream's own part is its error."""
        try:
            yield
        except Exception as error:  # whatever it is, it is this stream's error and no other's
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            raise StreamError(f"The stream failed: {kind}{error}", "Open a new one.", stream=stream) from error

    def _out_of_memory(self, streams: list[ImageStream]) -> OutOfMemoryError:
        core = self.core
        slots, largest = sum(len(s.active) for s in streams), max(streams, key=lambda s: len(s.active))
        remedy = what_would_fit(
            slots=slots,
            ran=self._max_run,
            width=core.width,
            height=core.height,
            multiple_px=core.codec.factor,
            depth=min(largest.controls.depth, core.max_slots),
            steps=largest.controls.steps,
        )
        return OutOfMemoryError(
            f"{core.model.device} has too little memory for {slots} slots of {core.frames_per_slot} frames "
            f"at {core.width}x{core.height}.",
            remedy,
        )
