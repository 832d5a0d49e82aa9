"""Owns what both engines do with conditioners: creating them, their parts in a stream, and the conditions of a slot.

Independent of what any conditioner does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from cache.ring import RingField
from pipelines.core.controls import Control, Controls

from .base import Conditioner, ConditionerFactory, EngineParts, NewSlot, PassView, StreamConditioner, StreamPlace
from .frames import Columns, FrameConditions


def make_conditioners(factories: Iterable[ConditionerFactory], parts: EngineParts) -> tuple[Conditioner, ...]:
    """Create the conditioners of an engine."""
    made = tuple(made for factory in factories if (made := factory(parts)) is not None)
    assert len({conditioner.name for conditioner in made}) == len(made), [c.name for c in made]
    all_fields(made)
    return made


def all_fields(conditioners: Iterable[Conditioner]) -> dict[str, RingField]:
    """Return the fields of all conditioners, by name."""
    fields: dict[str, RingField] = {}
    for conditioner in conditioners:
        assert fields.keys().isdisjoint(conditioner.fields), (
            f"{conditioner.name}: another conditioner has a field of that name"
        )
        assert conditioner.branched <= conditioner.fields.keys(), conditioner.name
        fields.update(conditioner.fields)
    return fields


def all_inputs(conditioners: Iterable[Conditioner], view: PassView) -> dict[str, torch.Tensor]:
    """Return the inputs of all conditioners for a pass; those of the same name are summed."""
    inputs: dict[str, torch.Tensor] = {}
    for conditioner in conditioners:
        for name, value in conditioner.inputs(view).items():
            inputs[name] = inputs[name] + value if name in inputs else value
    return inputs


def no_conditions(conditioners: Iterable[Conditioner], device: torch.device) -> FrameConditions:
    """Return the conditions of a single frame without any condition: zeros."""
    made = tuple(conditioners)
    columns = {c.name: ((0.0,) * len(c.columns),) for c in made if c.columns}
    fields = {
        name: torch.zeros((1, *field.shape), dtype=field.dtype, device=device)
        for name, field in all_fields(made).items()
    }
    return FrameConditions(columns=columns, fields=fields)


class SlotConditions:
    """The conditions of one slot: its fields, its columns, and the `now` that each conditioner last wrote for it."""

    __slots__ = ("columns", "fields", "slot", "written")

    def __init__(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        """fields: views to write into; see `StreamConditioner.write`."""
        self.slot, self.fields = slot, fields
        self.columns: dict[str, Columns] = {}
        self.written: dict[str, object] = {}

    @property
    def frames(self) -> FrameConditions:
        """The conditions of a chunk, frame by frame."""
        columns = {name: (values,) * self.slot.frames for name, values in self.columns.items()}
        return FrameConditions(columns=columns, fields=self.fields)


class StreamConditioning:
    """The parts of an engine's conditioners in one stream."""

    def __init__(self, conditioners: Sequence[Conditioner], controls: Controls, place: StreamPlace) -> None:
        self._parts = [(conditioner, conditioner.stream(controls, place)) for conditioner in conditioners]

    def part(self, name: str) -> StreamConditioner:
        """Return the part of one conditioner."""
        return next(part for conditioner, part in self._parts if conditioner.name == name)

    def change(self, names: Collection[str], controls: Controls) -> Callable[[], None]:
        """Prepare a change of the controls of these names. Changes nothing and may raise what a conditioner raises; the
        returned call commits the change."""
        calls = [part.change(controls) for c, part in self._parts if not c.controls.isdisjoint(names)]

        def commit() -> None:
            for call in calls:
                call()

        return commit

    def tick(self, controls: Controls, in_flight: Sequence[SlotConditions]) -> bool:
        """Call before a tick; rewrites slots that follow. Returns whether a video's context must be encoded again."""
        past = False
        for conditioner, part in self._parts:
            if part.tick(controls):
                past = past or conditioner.past_follows
                for share in in_flight:
                    _write(conditioner, part, share)
        return past

    def begin(self, slot: NewSlot) -> None:
        """Call when a slot is admitted, before `share`."""
        for _, part in self._parts:
            part.begin(slot)

    @property
    def now(self) -> tuple[object, ...]:
        """What `share` would write now: equal for slots that get equal conditions."""
        return tuple(part.now for _, part in self._parts)

    def share(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> SlotConditions:
        """Let the conditioners write the conditions of the slot given to the last `begin`."""
        share = SlotConditions(slot, fields)
        for conditioner, part in self._parts:
            _write(conditioner, part, share)
        return share

    def serve(self, row: int, share: SlotConditions) -> None:
        """Make a row of the text store serve this slot in the next tick."""
        for conditioner, part in self._parts:
            part.serve(row, share.written[conditioner.name])

    def restart(self) -> None:
        """Call when the stream starts over."""
        for _, part in self._parts:
            part.restart()

    def close(self) -> None:
        """Call once when the stream closes."""
        for _, part in self._parts:
            part.close()

    def rewound(self, controls: Controls) -> Control:
        """Return the values of the controls that a rewind restores."""
        names = sorted({name for conditioner, _ in self._parts if conditioner.rewound for name in conditioner.controls})
        return Control.of({name: controls.values[name] for name in names})

    def state(self) -> dict[str, object]:
        """Return the state that `restore` takes."""
        return {conditioner.name: part.state() for conditioner, part in self._parts}

    def restore(self, state: Mapping[str, object]) -> None:
        """Restore a state returned by `state`."""
        for conditioner, part in self._parts:
            part.restore(state[conditioner.name])


def _write(conditioner: Conditioner, part: StreamConditioner, share: SlotConditions) -> None:
    """Write the conditioner's current condition for the slot, unless it is already written."""
    name, now = conditioner.name, part.now
    if name in share.written and share.written[name] == now:
        return
    part.write(share.slot, {field: share.fields[field] for field in conditioner.fields})
    if conditioner.columns:
        values = part.columns(share.slot)
        assert len(values) == len(conditioner.columns), (name, values)
        share.columns[name] = values
    share.written[name] = now
