"""Owns the execution of one tick: upload, admit new slots, one step of every slot, decode finished ones, read back.

Successive ticks may run side by side, each in its lane (pipelines/image/lanes.py); this file says which part of a tick
waits for what. Independent of streams: the engine decides which slots take part and what happens to finished ones.
Nothing is allocated in `run`, and the host waits only when it is as many ticks ahead as there are lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipelines.core.tick_log import RowRecord, TickRecord
from pipelines.core.tick_timings import TickTimings
from pipelines.core.transfers import Mark

from .lanes import Lane, TickMarks
from .reuse.layout import PassLayout, PassPlan
from .slots import Slot
from .state import ImageCore
from .step_plan import ReusePlan
from .tick_batch import TickBatch
from .tick_parts import TickParts

_STEADY_TICKS = 48


class TickRunner:
    """Runs ticks for one engine. `run` takes the slots in batch order with the guidance scale and delta of each."""

    def __init__(self, core: ImageCore) -> None:
        self._core, self._lanes = core, core.lanes
        self._parts = [TickParts(core, shared=core.lanes.queues.shared) for _ in core.lanes.lanes]
        self.timings = TickTimings(core.log)
        self._stepped: dict[Slot, int] = {}  # columns of a tick that failed after its slots had been stepped
        self._entries = self._ticks_alike = 0  # size of the last batch, and how many ticks in a row had it
        core.lanes.settle()  # the buffers were filled by the caller's queue

    def run(self, slots: Sequence[Slot], scales: Sequence[float], deltas: Sequence[float]) -> list[tuple[Slot, Mark]]:
        """Run one step of each slot. Returns the finished slots, each with the mark that passes when its pictures are
        on the host.

        A tick that fails does not count; it can be run again, with fewer slots.
        """
        core, tick = self._core, self._core.next_tick
        codec_windows = core.codec.margin is not None
        batch = TickBatch.of(slots, scales, deltas, cell=core.reuse_cell, codec_windows=codec_windows)
        self._lanes.begin()
        try:
            self._issue(batch, tick)
        except BaseException:  # whatever it is: nothing of a failed tick may still run when it is run again
            self._lanes.settle()
            raise
        self._prefer(len(batch.slots) + len(batch.extra))
        self._log(batch)
        self.timings.add(tick, self._lanes.marks(tick).timed)
        self._lanes.end(tick)
        self.timings.log_finished()
        for slot in slots:
            slot.step += 1
        core.next_tick += 1
        return [(slot, slot.output.mark) for slot in batch.finished]

    def _prefer(self, entries: int) -> None:
        """Let the runtime prepare for the size of the denoiser's batch once it is steady."""
        self._ticks_alike = self._ticks_alike + 1 if entries == self._entries else 1
        self._entries = entries
        if self._ticks_alike == _STEADY_TICKS:
            self._core.runtime.preparation.prefer("denoise", entries * self._core.frames_per_slot)

    def rehearse(self, slots: int) -> None:
        """Run the parts of a tick with so many slots on unused rows, one of which is admitted and finishes."""
        parts, lane = self._parts[0], self._lanes.lanes[0]
        for work in (
            partial(parts.admit, 1, 1),
            partial(parts.denoise, slots, 0, False, False),
            partial(parts.finish, 1),
        ):
            lane.queue.run(work)
        self._lanes.settle()

    def _issue(self, batch: TickBatch, tick: int) -> None:
        """Issue a tick to the device."""
        lanes = self._lanes
        lane, marks, slots = lanes.lane(tick), lanes.marks(tick), batch.slots
        if self._core.prompt_keys is not None:
            self._core.prompt_keys.refresh(slots, lanes, tick)
        lanes.queues.current().record(marks.written)
        stepped = self._stepped if all(slot in self._stepped for slot in slots) else {}  # only the pictures are missing
        columns = stepped or {slot: column for column, slot in enumerate(slots)}
        self._stepped = {}
        reuse = self._upload(batch, [columns[slot] for slot in batch.finished], tick)
        if not stepped:
            lanes.order(lane.queue, [slot.row for slot in batch.new], tick)
        lane.queue.record(marks.started)
        if not stepped:
            self._step(batch, tick, reuse)
        else:
            for mark in (marks.encoded, marks.stepping, marks.stepped):
                lane.queue.record(mark)
        if batch.finished:
            self._stepped = columns
            self._finish(batch, lane, marks, tick)
            self._stepped = {}
        else:
            lane.queue.record(marks.decoded)
            lane.queue.record(marks.finished)

    def _upload(self, batch: TickBatch, finished: Sequence[int], tick: int) -> ReusePlan | None:
        """Fill the lane's tables and send them behind its last tick; pictures and noise as soon as it has encoded.
        Returns what the step cache has planned."""
        lanes, parts = self._lanes, self._parts[tick % self._lanes.count]
        tables, reuse = parts.tables, parts.plan(batch, tick)
        lane, marks, before = lanes.lane(tick), lanes.marks(tick), lanes.marks_before(tick)
        tables.fill(batch, finished, reuse)
        lane.queue.run(tables.tables_copy())
        if batch.new:
            if before is not None:
                lanes.uploads.wait(before.encoded)
            for copy in tables.array_copies(batch):
                lanes.uploads.run(copy)
            lanes.uploads.record(marks.uploaded)
            lane.queue.wait(marks.uploaded)
        return reuse

    def _step(self, batch: TickBatch, tick: int, reuse: ReusePlan | None) -> None:
        """Admit new slots, then step every slot: behind the last steps of those that are not new, and behind what
        conditioners have written."""
        lanes, parts = self._lanes, self._parts[tick % self._lanes.count]
        lane, marks = lanes.lane(tick), lanes.marks(tick)
        pictures, new, rows, extra = batch.pictures, len(batch.new), len(batch.slots), len(batch.extra)
        held = [slot.row for slot in batch.slots]
        kept = [slot.row for slot in batch.slots if slot.step > 0]
        if new:
            layout = _layout(batch.passes.admit)
            admit = partial(parts.admit, pictures, new, layout)
            lane.queue.run(partial(lane.executor.run, ("admit", pictures, new, layout), admit))
        lane.queue.record(marks.encoded)
        layout = _layout(batch.passes.denoise)
        lanes.order(lane.queue, kept, tick)
        lane.queue.wait(marks.written)
        lane.queue.record(marks.stepping)
        lanes.use(held, tick)
        shape = (rows, extra, batch.use_stock, batch.use_last)
        key = ("denoise", *shape, layout, None if reuse is None else reuse.key)
        lane.queue.run(partial(lane.executor.run, key, partial(parts.denoise, *shape, layout, reuse)))
        lane.queue.record(marks.stepped)

    def _finish(self, batch: TickBatch, lane: Lane, marks: TickMarks, tick: int) -> None:
        """Decode the finished slots, once the pictures of the lane's last tick have been copied to the host."""
        lanes, parts, finished = self._lanes, self._parts[lane.index], batch.finished
        before = lanes.marks_before(tick)
        if before is not None:
            lane.queue.wait(before.finished)
        layout = _layout(batch.passes.finish)
        decode = partial(parts.finish, len(finished), layout)
        lane.queue.run(partial(lane.executor.run, ("finish", len(finished), layout), decode))
        lane.queue.record(marks.decoded)
        lanes.downloads.wait(marks.decoded)
        lanes.downloads.run(partial(parts.read_back, finished))
        for slot in finished:
            lanes.downloads.record(slot.output.mark)
        lanes.downloads.record(marks.finished)

    def _log(self, batch: TickBatch) -> None:
        extra = set(batch.extra)
        rows = tuple(
            RowRecord(
                stream=slot.birth.stream,
                slot=slot.birth.number,
                row=slot.row,
                step=slot.step,
                timestep=slot.birth.plan[slot.step].timestep,
                extra=column in extra,
                guidance_scale=batch.scales[column],
                guidance_delta=batch.deltas[column],
            )
            for column, slot in enumerate(batch.slots)
        )
        ended = tuple((slot.birth.stream, slot.birth.number) for slot in batch.finished)
        self._core.log.add(TickRecord(tick=self._core.next_tick, rows=rows, finished=ended))


def _layout(plan: PassPlan | None) -> PassLayout | None:
    return None if plan is None else plan.layout
