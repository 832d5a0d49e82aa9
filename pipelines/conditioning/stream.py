"""Owns what both engines do with conditioners: making them, one stream's parts of them, and a slot's share.

Independent of what any conditioner says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch

from cache.ring import RingField
from pipelines.core.controls import Control, Controls

from .base import Conditioner, ConditionerFactory, EngineParts, NewSlot, PassView, StreamConditioner, StreamPlace
from .frames import Columns, FrameConditions


def make_conditioners(factories: Iterable[ConditionerFactory], parts: EngineParts) -> tuple[Conditioner, ...]:
    """Those of an engine."""
    made = tuple(made for factory in factories if (made := factory(parts)) is not None)
    assert len({conditioner.name for conditioner in made}) == len(made), [c.name for c in made]
    all_fields(made)
    return made


def all_fields(conditioners: Iterable[Conditioner]) -> dict[str, RingField]:
    """The fields of all, by name."""
    fields: dict[str, RingField] = {}
    for conditioner in conditioners:
        assert fields.keys().isdisjoint(conditioner.fields), f"{conditioner.name}: a field of that name is there"
        assert conditioner.branched <= conditioner.fields.keys(), conditioner.name
        fields.update(conditioner.fields)
    return fields


def all_inputs(conditioners: Iterable[Conditioner], view: PassView) -> dict[str, torch.Tensor]:
    """What all add to a pass; those of one name are added up."""
    inputs: dict[str, torch.Tensor] = {}
    for conditioner in conditioners:
        for name, value in conditioner.inputs(view).items():
            inputs[name] = inputs[name] + value if name in inputs else value
    return inputs


def no_conditions(conditioners: Iterable[Conditioner], device: torch.device) -> FrameConditions:
    """Of one frame of which nothing is said."""
    made = tuple(conditioners)
    columns = {c.name: ((0.0,) * len(c.columns),) for c in made if c.columns}
    fields = {
        name: torch.zeros((1, *field.shape), dtype=field.dtype, device=device)
        for name, field in all_fields(made).items()
    }
    return FrameConditions(columns=columns, fields=fields)


class SlotConditions:
    """One slot's share: where its fields are, its columns, and what each conditioner wrote for it last."""

    __slots__ = ("columns", "fields", "slot", "written")

    def __init__(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        """fields: views, see `StreamConditioner.write`."""
        self.slot, self.fields = slot, fields
        self.columns: dict[str, Columns] = {}
        self.written: dict[str, object] = {}

    @property
    def frames(self) -> FrameConditions:
        """The same of each frame of a chunk."""
        columns = {name: (values,) * self.slot.frames for name, values in self.columns.items()}
        return FrameConditions(columns=columns, fields=self.fields)


class StreamConditioning:
    """The parts that one stream has of its engine's conditioners."""

    def __init__(self, conditioners: Sequence[Conditioner], controls: Controls, place: StreamPlace) -> None:
        self._parts = [(conditioner, conditioner.stream(controls, place)) for conditioner in conditioners]

    def part(self, name: str) -> StreamConditioner:
        """That of one conditioner."""
        return next(part for conditioner, part in self._parts if conditioner.name == name)

    def change(self, names: Collection[str], controls: Controls) -> Callable[[], None]:
        """Controls of these names are to change. Raises what a conditioner raises, and changes nothing; the returned
        call makes it hold."""
        calls = [part.change(controls) for c, part in self._parts if not c.controls.isdisjoint(names)]

        def hold() -> None:
            for call in calls:
                call()

        return hold

    def tick(self, controls: Controls, in_flight: Sequence[SlotConditions]) -> bool:
        """Before a tick. Whether what is remembered of a video's past is to be seen again."""
        past = False
        for conditioner, part in self._parts:
            if part.tick(controls):
                past = past or conditioner.past_follows
                for share in in_flight:
                    _write(conditioner, part, share)
        return past

    def begin(self, slot: NewSlot) -> None:
        """A slot is born."""
        for _, part in self._parts:
            part.begin(slot)

    def share(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> SlotConditions:
        """What conditioners write for the slot that was begun last."""
        share = SlotConditions(slot, fields)
        for conditioner, part in self._parts:
            _write(conditioner, part, share)
        return share

    def serve(self, row: int, share: SlotConditions) -> None:
        """A row of the text store serves this slot in the tick that begins."""
        for conditioner, part in self._parts:
            part.serve(row, share.written[conditioner.name])

    def rewound(self, controls: Controls) -> Control:
        """The values of the controls that a rewind puts back."""
        names = sorted({name for conditioner, _ in self._parts if conditioner.rewound for name in conditioner.controls})
        return Control.of({name: controls.values[name] for name in names})

    def state(self) -> dict[str, object]:
        """For `restore`."""
        return {conditioner.name: part.state() for conditioner, part in self._parts}

    def restore(self, state: Mapping[str, object]) -> None:
        """Go back to a state."""
        for conditioner, part in self._parts:
            part.restore(state[conditioner.name])


def _write(conditioner: Conditioner, part: StreamConditioner, share: SlotConditions) -> None:
    """Where something else was written for the slot."""
    name, now = conditioner.name, part.now
    if name in share.written and share.written[name] == now:
        return
    part.write(share.slot, {field: share.fields[field] for field in conditioner.fields})
    if conditioner.columns:
        values = part.columns(share.slot)
        assert len(values) == len(conditioner.columns), (name, values)
        share.columns[name] = values
    share.written[name] = now
