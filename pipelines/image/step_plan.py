"""Owns what a step cache decides on the host before a tick: which entries of the batch compute, run shallow or reuse,
and where in the history each reads and writes.

Slots of one tick are at different steps, so a batch splits into three groups. A slot whose controls have changed since
its last step computes, and forgets what it had. Independent of tensors but for the tables that it fills.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from cache.features.steps.contract import Action

from .slots import Slot
from .step_caches import Correction, Signal, SlotCache, StepCache
from .step_profile import StepProfile
from .tick_batch import TickBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """The rows of the two tables of a tick; columns are the entries of the batch, sorted by group: those that compute,
    run shallow, reuse. depth: results kept for extrapolation. channels: of the latents.

    Integers: the entry; the cells of the history to write to, of the output and of the deep feature; then the cells to
    read, newest first, of both. A slot's entry has cell 2 row, its negative prompt's cell 2 row + 1; each has `depth`
    places in the history. Floats: weights of what is read, of both; then factor and offset of each channel.
    """

    depth: int
    channels: int

    ENTRY = 0
    CELL = 1
    WRITE_OUTPUT = 2
    WRITE_DEEP = 3
    READ_OUTPUT = 4

    @property
    def read_deep(self) -> int:
        return self.READ_OUTPUT + self.depth

    @property
    def ints(self) -> int:
        """How many rows the integer table has."""
        return self.READ_OUTPUT + 2 * self.depth

    @property
    def factor(self) -> int:
        return 2 * self.depth

    @property
    def offset(self) -> int:
        return 2 * self.depth + self.channels

    @property
    def floats(self) -> int:
        """How many rows the float table has."""
        return 2 * self.depth + 2 * self.channels


@dataclass(slots=True)
class _Kept:
    """The history of one cached tensor of a slot: timesteps of what is kept, newest first, and how many were
    written."""

    depth: int
    times: list[int] = field(default_factory=list)
    written: int = 0

    def write(self, timestep: int) -> int:
        """Note a new result; returns its place."""
        self.times = [timestep, *self.times[: self.depth - 1]]
        self.written += 1
        return (self.written - 1) % self.depth

    def places(self) -> list[int]:
        """Return where the results are, newest first; the newest stands in for those that are missing."""
        newest = self.written - 1
        return [(newest - (k if k < len(self.times) else 0)) % self.depth for k in range(self.depth)]


@dataclass(slots=True)
class _Held:
    """What is known of the slot in one ring row. asked: the step of `action`. seen: its controls at that step."""

    slot: Slot
    cache: SlotCache
    output: _Kept
    deep: _Kept
    asked: int = -1
    action: Action = Action.COMPUTE
    seen: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusePlan:
    """One tick: sizes of the three groups, and a column of both tables for each entry, sorted by group. key: what a
    captured graph is kept by."""

    full: int
    shallow: int
    reused: int
    ints: tuple[tuple[int, ...], ...]
    floats: tuple[tuple[float, ...], ...]

    @property
    def key(self) -> Hashable:
        return (self.full, self.shallow, self.reused)

    @property
    def in_order(self) -> bool:
        """Whether the entries are in the order of the batch."""
        return all(column[TableRows.ENTRY] == index for index, column in enumerate(self.ints))

    def fill(self, ints: npt.NDArray[Any], floats: npt.NDArray[Any]) -> None:
        """Write the columns into the tables."""
        for index, (whole, real) in enumerate(zip(self.ints, self.floats, strict=True)):
            ints[:, index], floats[:, index] = whole, real


def all_full(entries: int) -> ReusePlan:
    """Return the plan of a tick in which every entry computes, whose tables are left as they are."""
    column = ((index,) for index in range(entries))
    return ReusePlan(full=entries, shallow=0, reused=0, ints=tuple(column), floats=())


class StepPlanner:
    """Plans the ticks of one engine."""

    def __init__(self, cache: StepCache, profile: StepProfile | None, channels: int) -> None:
        """channels: of the latents."""
        self.cache, self._profile = cache, profile
        self.rows = TableRows(depth=cache.extrapolation.depth, channels=channels)
        self._held: dict[int, _Held] = {}
        self._unit = (*[1.0] * channels, *[0.0] * channels)
        self.counts = dict.fromkeys(Action, 0)

    def plan(self, batch: TickBatch, epoch: object, measured: Callable[[int], float]) -> ReusePlan:
        """Plan a tick; the same again for a tick that failed. epoch: equal while the engine's own controls stand.
        measured: gives the distance measured in a ring row's last step; it may wait for that step, never for this."""
        columns: list[tuple[Action, tuple[int, ...], tuple[float, ...]]] = []
        entries = {column: len(batch.slots) + index for index, column in enumerate(batch.extra)}
        for column, slot in enumerate(batch.slots):
            guided = (batch.scales[column], batch.deltas[column]) if slot.birth.guidance.guides else None
            seen = (guided, dict(slot.conditions.written), epoch)
            held = self._ask(slot, seen, measured)
            for entry, cell in ((column, 2 * slot.row), (entries.get(column), 2 * slot.row + 1)):
                if entry is not None:
                    columns.append((held.action, *self._column(held, entry, cell)))
        columns.sort(key=lambda found: (found[0], found[1][TableRows.ENTRY]))
        sizes = [sum(found[0] is action for found in columns) for action in Action]
        return ReusePlan(
            full=sizes[Action.COMPUTE],
            shallow=sizes[Action.SHALLOW],
            reused=sizes[Action.REUSE],
            ints=tuple(found[1] for found in columns),
            floats=tuple(found[2] for found in columns),
        )

    def _ask(self, slot: Slot, seen: object, measured: Callable[[int], float]) -> _Held:
        """Return what is held of a slot, with the action of its next step."""
        held = self._held.get(slot.row)
        if held is None or held.slot is not slot:
            held = self._held[slot.row] = self._begin(slot)
        if held.asked == slot.step:  # the tick is run again
            return held
        if self.cache.measures is not None and held.asked >= 0:
            held.cache.gate.observe(measured(slot.row) if self._can_compare(held) else math.nan)
        held.action = held.cache.gate.action(slot.step)
        changed = held.asked >= 0 and seen != held.seen
        if changed:
            held.output.times.clear()
            held.deep.times.clear()
        missing = (held.action is Action.SHALLOW and not held.deep.times) or (
            held.action is Action.REUSE and not held.output.times
        )
        if missing or changed:
            held.action = Action.COMPUTE
        held.asked, held.seen = slot.step, seen
        self.counts[held.action] += 1
        self._keep(held, slot.birth.plan[slot.step].timestep)
        return held

    def _can_compare(self, held: _Held) -> bool:
        """Whether what was measured in a slot's last step was measured from an earlier step of the slot."""
        return held.asked > 0 and (self.cache.measures is not Signal.TOP or held.action is not Action.COMPUTE)

    def _begin(self, slot: Slot) -> _Held:
        times = tuple(step.timestep for step in slot.birth.plan)
        depth = self.rows.depth
        return _Held(slot, self.cache.start(times, self._profile), _Kept(depth), _Kept(depth))

    def _keep(self, held: _Held, timestep: int) -> None:
        if held.action is Action.COMPUTE:
            held.deep.write(timestep)
        if held.action is not Action.REUSE:
            held.output.write(timestep)

    def _column(self, held: _Held, entry: int, cell: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        timestep, depth, first = held.slot.birth.plan[held.asked].timestep, self.rows.depth, cell * self.rows.depth
        kept = (held.output, held.deep)
        newest = [first + (k.written - 1) % depth for k in kept]
        reads = [first + place for k in kept for place in (k.places() if k.times else [0] * depth)]
        weights = [w for k in kept for w in self._weights(k, timestep)]
        correction: Correction | None = None
        if held.action is Action.REUSE and held.cache.correct is not None:
            correction = held.cache.correct(timestep, held.output.times[0])
        corrected = self._unit if correction is None else (*correction[0], *correction[1])
        return (entry, cell, *newest, *reads), (*weights, *corrected)

    def _weights(self, kept: _Kept, timestep: int) -> Sequence[float]:
        if not kept.times:
            return [0.0] * self.rows.depth
        weights = self.cache.extrapolation.weights([float(t) for t in kept.times], float(timestep))
        return [*weights, *[0.0] * (self.rows.depth - len(weights))]
