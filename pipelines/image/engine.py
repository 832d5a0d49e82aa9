"""Owns the step-batched image engine: its streams, and the tick that advances all their slots as one batch.

Independent of files, HTTP and other engines. docs/engine.md describes a tick step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from cache.features.frames import PRESETS
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import ConditionerFactory
from pipelines.core.controls import Control, Controls
from pipelines.core.engine_base import EngineBase
from pipelines.core.errors import OutOfMemoryError, StreamError
from pipelines.core.out_of_memory import MemoryWatch
from pipelines.core.preparation import NoPreparation, Preparation
from pipelines.core.tick_log import TickLog
from pipelines.files.memory import what_would_fit
from pipelines.stages.table import StageSetting, make_stages

from .cache_profile import CacheProfile
from .model import ImageModel, ImageRuntime
from .state import ImageCore
from .step_caches import StepCache
from .stream import ImageStream
from .tick import TickRunner

_FRAME_RATE = Fraction(24)  # of prompt-only frames, in frames per second


class ImageEngine(EngineBase[ImageStream]):
    """Runs one image model for any number of streams, which share `max_slots` slots.

    width, height: pixels, multiples of the codec's factor; 0: the model's native size. max_slots: 1 to 64.
    work_dtype: dtype of latents and formulas; float32 except in tests. conditioners: what may steer a slot. stages:
    names in pipelines.stages.table. step_cache: one of step_caches.STEP_CACHES, or its name; "":
    none. cache_profile: what was calibrated for this model and size; None: built-in presets.
    Raises ControlError or InputError for sizes that are not possible, InputError for an unknown stage or cache,
    ModelError for a cache that cannot be used with this model or backend, or a profile of another model or size.
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
        conditioners: Sequence[ConditionerFactory] = CONDITIONERS,
        stages: Sequence[str] = (),
        step_cache: str | StepCache = "",
        cache_profile: CacheProfile | None = None,
    ) -> None:
        if cache_profile is not None:
            model = cache_profile.adapted(model, (width or model.size_px[0], height or model.size_px[1]))
        with torch.inference_mode():
            self.core = ImageCore(
                model,
                width=width,
                height=height,
                frames_per_slot=frames_per_slot,
                max_slots=max_slots,
                tick_log=tick_log,
                work_dtype=work_dtype,
                conditioners=conditioners,
                cache=step_cache,
                reuse_presets=PRESETS if cache_profile is None else cache_profile.all_presets(),
            )
            self._runner = TickRunner(self.core)
        super().__init__(self.core.log, _FRAME_RATE)
        self._rehearse()
        setting = StageSetting(width=self.core.width, height=self.core.height, device=str(model.device))
        self._make_stages = make_stages(stages, setting)
        self._largest_batch = 0  # slots in the largest batch that has run
        self._out_of_memory = False  # the next stream to close then returns its cached memory to the device

    @property
    def preparation(self) -> Preparation:
        """That of the runtime."""
        return self.core.runtime.preparation

    def _rehearse(self) -> None:
        """Run the parts once at the default shapes, where compiled forms are prepared: those that are stored and
        load at once are used from the first frame on, and the others are asked for."""
        core = self.core
        if not isinstance(core.runtime.preparation, NoPreparation):
            self.rehearse(Controls().updated(Control.of(core.model.defaults)).steps)

    @torch.inference_mode()
    def rehearse(self, slots: int) -> None:
        """Run the parts of a tick with so many slots, at most max_slots. No stream may be open.

        Raises OutOfMemoryError.
        """
        assert not self._streams
        self._follow_bank()
        slots = min(slots, self.core.max_slots)
        with MemoryWatch() as memory:
            self._runner.rehearse(slots)
        if memory.ran_out:
            raise self._too_large(slots, 0, depth=1, steps=slots)

    def _make_stream(self, number: int, frame_rate: Fraction, control: Control) -> ImageStream:
        stages = [make() for make in self._make_stages]
        return ImageStream(self.core, number, frame_rate, control, stages, tick=self.tick, leave=self._forget)

    @torch.inference_mode()
    def tick(self) -> None:
        """Advance every slot of every open stream by one step, as one batch. Without slots it does nothing, and the
        tick is not counted.

        Raises OutOfMemoryError, or StreamError when one stream's own part fails. If a stream is then closed and `tick`
        called again before anything else, the other streams neither lose nor repeat anything.
        """
        self._runner.timings.log_finished()
        if self.core.runtime.preparation.swap():
            self.core.reuse_epoch += 1
            self.core.lanes.invalidate()
        self._follow_bank()
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
        with MemoryWatch() as memory:
            finished = self._runner.run(slots, scales, deltas)
        if memory.ran_out:
            self._out_of_memory = True
            raise self._memory_error(streams)
        self._largest_batch = max(self._largest_batch, len(slots))
        done = dict(finished)
        failures = []
        for stream in streams:  # the tick has run: every stream must be notified, whichever of them fails
            try:
                with self._attribute_errors(stream):
                    stream.finish_tick(done)
            except StreamError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _follow_bank(self) -> None:
        """Let the runtime follow the streams that use a feature bank, which is allocated here. Raises StreamError, of
        the newest of these streams, when there is too little memory."""
        switched = False
        with MemoryWatch() as memory:
            switched = self.core.follow_bank()
        if memory.ran_out:
            self._out_of_memory = True
            newest = next(s for s in reversed(self._streams.values()) if s.controls.bank)
            message = f"{self.core.model.device} has too little memory for the feature bank."
            raise StreamError(message, "Leave bank off, or use fewer steps.", stream=newest)
        if switched:
            self._runner = TickRunner(self.core)

    @torch.inference_mode()
    def replace_runtime(self, runtime: ImageRuntime) -> None:
        """Let another backend's runtime of the same model take over, between two ticks; streams go on. Waits until the
        ticks that have been issued are done. Raises ControlError if a stream reuses as the new one cannot."""
        self.core.use_runtime(runtime)
        self._runner.timings.log_finished()
        self._runner = TickRunner(self.core)
        for stream in self._streams.values():
            stream.follow_runtime()

    def close(self) -> None:
        """Close all streams and release captured graphs."""
        closed = self._closed
        super().close()
        if not closed:
            self.core.runtime.preparation.close()
            self.core.release_graphs()

    def _check_storage(self) -> None:
        self.core.ring.check_integrity()
        held = sorted(row for stream in self._streams.values() for row in stream.rows)
        assert held == list(self.core.ring.held_rows), (held, self.core.ring.held_rows)

    def _forget(self, number: int) -> None:
        super()._forget(number)
        if self._out_of_memory and self.core.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self._out_of_memory = False

    def _memory_error(self, streams: list[ImageStream]) -> OutOfMemoryError:
        largest = max(streams, key=lambda s: len(s.active))
        depth, steps = min(largest.controls.depth, self.core.max_slots), largest.controls.steps
        return self._too_large(sum(len(s.active) for s in streams), self._largest_batch, depth=depth, steps=steps)

    def _too_large(self, slots: int, ran: int, *, depth: int, steps: int) -> OutOfMemoryError:
        core = self.core
        remedy = what_would_fit(
            slots=slots,
            ran=ran,
            width=core.width,
            height=core.height,
            multiple_px=core.codec.factor,
            depth=depth,
            steps=steps,
        )
        return OutOfMemoryError(
            f"{core.model.device} has too little memory for {slots} slots of {core.frames_per_slot} frames "
            f"at {core.width}x{core.height}.",
            remedy,
        )
