"""Changes and states of a stream's controls, checked against the control table.

`Control` is a partial change, `Controls` a complete state; both have an attribute for each row of the table.
Independent of engines and widgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

from .control_table import CONTROLS, CompleteValues, ControlSpec, ControlTable, EngineKind, PartialValues, Propagation
from .errors import ControlError
from .prompts import as_float, check_length, check_prompts, parse_prompts, shown


class Control(ControlTable, PartialValues):
    """A partial change, immutable: `Control(strength=0.4)`. None means unchanged.

    Raises ControlError for an unknown name, a wrong type or a value out of range.
    """

    __slots__ = ("_changes",)

    def __init__(self, **changes: object) -> None:
        given = {name: value for name, value in changes.items() if value is not None}
        for name, value in given.items():
            check_value(_spec(name), value)
        self._changes = {name: given[name] for name in CONTROLS if name in given}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Build from plain values (a JSON object, a command line); prompts may be text such as 'a cat:2 | a robot'.

        Raises ControlError as the constructor does.
        """
        return cls(**{name: _plain_to_typed(_spec(name), value) for name, value in values.items()})

    def value_of(self, name: str) -> Any:
        """Return the value of a control, or None if it is not set."""
        return self._changes.get(name)

    def changes(self) -> dict[str, object]:
        """Return what is set, by name, in the order of the table."""
        return dict(self._changes)

    def merged(self, later: Control) -> Control:
        """Return this change followed by a later one."""
        return Control(**{**self._changes, **later.changes()})

    def without(self, names: Iterable[str]) -> Control:
        """Return this change without the named controls."""
        excluded = set(names)
        return Control(**{name: value for name, value in self._changes.items() if name not in excluded})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Control) and self._changes == other._changes

    def __hash__(self) -> int:
        return hash(tuple(self._changes.items()))

    def __repr__(self) -> str:
        return f"Control({', '.join(f'{name}={value!r}' for name, value in self._changes.items())})"


class Controls(ControlTable, CompleteValues):
    """A complete state of all controls of a stream; initially the table's defaults. Immutable."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: Mapping[str, object] = MappingProxyType({name: spec.default for name, spec in CONTROLS.items()})

    def updated(self, control: Control) -> Controls:
        """Return this state with the change applied."""
        state = Controls()
        state.values = MappingProxyType({**self.values, **control.changes()})
        return state

    def value_of(self, name: str) -> Any:
        """Return the value of a control."""
        return self.values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Controls) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))


def _spec(name: str) -> ControlSpec:
    if name not in CONTROLS:
        raise ControlError(f"There is no control named {shown(name)}.", f"Known controls: {', '.join(CONTROLS)}.")
    return CONTROLS[name]


def _plain_to_typed(spec: ControlSpec, value: object) -> object:
    if spec.kind == "prompts":
        return parse_prompts(value)
    if spec.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return as_float(value)
    if spec.kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)  # JSON has a single number type: 3.0 is an integer too
    return value


def check_value(spec: ControlSpec, value: object) -> None:
    """Raise ControlError, with the value and the remedy, when `value` does not fit `spec`."""
    if spec.kind == "prompts":
        check_prompts(value, *_range(spec))
    elif spec.kind == "text":
        if not isinstance(value, str):
            raise ControlError(f"{spec.name} must be text, not {shown(value)}.")
        check_length(spec.name, value)
    elif spec.kind == "choice":
        if value not in spec.choices:
            raise ControlError(f"{spec.name} cannot be {shown(value)}.", f"Choose one of: {', '.join(spec.choices)}.")
    elif spec.kind == "bool":
        if not isinstance(value, bool):
            raise ControlError(f"{spec.name} must be true or false, not {shown(value)}.")
    else:
        _check_number(spec, value)


def _check_number(spec: ControlSpec, value: object) -> None:
    wanted = int if spec.kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isinstance(value, wanted):
        raise ControlError(
            f"{spec.name} must be a {'whole number' if spec.kind == 'int' else 'number'}, not {shown(value)}."
        )
    low, high = _range(spec)
    if not low <= value <= high:  # also rejects NaN
        raise ControlError(f"{spec.name} cannot be {shown(value)}.", f"Give a value from {low:g} to {high:g}.")


def _range(spec: ControlSpec) -> tuple[float, float]:
    assert spec.minimum is not None
    assert spec.maximum is not None
    return spec.minimum, spec.maximum


_NOUNS: Mapping[EngineKind, str] = {"image": "an image model", "video": "a video model"}


def changeable(current: Controls, control: Control, *, engine: EngineKind) -> Controls:
    """Return `current` with `control` applied, after checking that an open stream of `engine` can change that way.

    Raises ControlError for a new value of a control of the class *reopen* or of one that does not apply to this engine.
    """
    fixed = {n: current.values[n] for n, spec in CONTROLS.items() if spec.propagation is Propagation.REOPEN}
    for name, value in control.changes().items():
        if name in fixed and value not in (fixed[name], 0):
            raise ControlError(
                f"{name} cannot become {value!r} in an open stream (it is {fixed[name]!r}).",
                "Load the engine again with that value.",
            )
        if name not in fixed and engine not in CONTROLS[name].engines and value != current.values[name]:
            raise ControlError(
                f"{name} does not apply to {_NOUNS[engine]}.",
                f"It is a control of {_NOUNS[CONTROLS[name].engines[0]]}.",
            )
    return current.updated(control).updated(Control.of(fixed))
