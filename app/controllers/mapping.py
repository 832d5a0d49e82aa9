"""Maps external controllers to the control table: addresses, ranges, smoothing, and conversion of values.

A mapping's address is an OSC address ("/1/fader3") or a MIDI one ("cc:1:74", "note:*:60": kind, channel 1 to 16 or *,
number). Depends on the control table only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipelines.core.control_table import CONTROLS, ControlSpec, Propagation
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError

FILE_VERSION = 1
MAX_MAPPINGS = 512
MAX_SMOOTHING_MS = 60_000.0
_FILE_BYTES = 1 << 20
_OSC = re.compile(r"/[!-~]*[^\s#*,?\[\]{}/]")
_MIDI = re.compile(r"(cc|note):(\*|[1-9]|1[0-6]):([0-9]|[1-9][0-9]|1[01][0-9]|12[0-7])")
_NUMBERS = ("float", "int")
_TEXTS = ("text", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMapping:
    """Maps one controller to one control.

    low, high: the values at the controller's 0 and 1, for kinds float and int; low above high inverts; the default is
    the control's range. smoothing_ms: time constant (63 % of a move); 0: none. bool: on from 0.5. choice: the range is
    divided equally among the choices. text and prompts take text. Raises ControlError.
    """

    address: str
    control: str
    low: float | None = None
    high: float | None = None
    smoothing_ms: float = 0.0

    def __post_init__(self) -> None:
        if not _OSC.fullmatch(self.address) and not _MIDI.fullmatch(self.address):
            raise ControlError(
                f"{self.address!r} is not a controller address.", "Give an OSC address (/1/fader3) or MIDI (cc:1:74)."
            )
        spec = live_control(self.control)
        if spec.kind in _TEXTS and _MIDI.fullmatch(self.address):
            raise ControlError(f"{spec.name} is text, which MIDI cannot send.", "Map it to an OSC address.")
        self._check_range(spec)
        if not 0 <= self.smoothing_ms <= MAX_SMOOTHING_MS:
            raise ControlError(
                f"smoothing_ms of {spec.name} cannot be {self.smoothing_ms}.",
                f"Give milliseconds from 0 to {MAX_SMOOTHING_MS:g}.",
            )
        if self.smoothing_ms and spec.kind not in _NUMBERS:
            raise ControlError(f"{spec.name} is not a number and cannot be smoothed.", "Leave smoothing_ms out.")

    def _check_range(self, spec: ControlSpec) -> None:
        for name, value in (("low", self.low), ("high", self.high)):
            if value is None:
                continue
            if spec.kind not in _NUMBERS:
                raise ControlError(f"{spec.name} is of kind {spec.kind} and has no range.", f"Leave {name} out.")
            assert spec.minimum is not None
            assert spec.maximum is not None
            if not spec.minimum <= value <= spec.maximum:  # also rejects NaN
                raise ControlError(
                    f"{name} of {spec.name} cannot be {value}.",
                    f"Give a value from {spec.minimum:g} to {spec.maximum:g}.",
                )

    def target(self, position: object) -> object:
        """The control's value at the controller's `position` (0 to 1; text for text). Raises ControlError.

        For kind int it is still a float: rounded after smoothing.
        """
        spec = CONTROLS[self.control]
        if spec.kind in _TEXTS:
            return plain_value(spec, position)
        fraction = min(1.0, max(0.0, _number(self.control, position)))
        if spec.kind == "bool":
            return fraction >= 0.5
        if spec.kind == "choice":
            return spec.choices[min(len(spec.choices) - 1, int(fraction * len(spec.choices)))]
        assert spec.minimum is not None
        assert spec.slider_end is not None
        low = spec.minimum if self.low is None else self.low
        high = spec.slider_end if self.high is None else self.high
        return low + fraction * (high - low)


def live_control(name: str) -> ControlSpec:
    """The table row of a control that a running stream can change. Raises ControlError."""
    spec = CONTROLS.get(name)
    if spec is None:
        raise ControlError(f"There is no control named {name!r}.", f"Known controls: {', '.join(CONTROLS)}.")
    if spec.propagation is Propagation.REOPEN:
        raise ControlError(f"{name} needs a new stream and cannot be changed while one runs.", "Set it at startup.")
    return spec


def plain_value(spec: ControlSpec, value: object) -> object:
    """Convert a controller's value in the control's own unit: integers may arrive as 3.0, switches as 0 or 1.

    Raises ControlError for an invalid value.
    """
    if spec.kind == "int" and isinstance(value, float) and math.isfinite(value):
        value = round(value)
    elif spec.kind == "bool" and isinstance(value, int | float):
        value = value >= 0.5
    return Control.of({spec.name: value}).changes()[spec.name]


def load_mappings(path: Path) -> tuple[ControlMapping, ...]:
    """Load the mappings of a JSON file: {"version": 1, "mappings": [{"address": ..., "control": ..., ...}]}.

    Raises InputError (ControlError for an invalid mapping), naming the file and the mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            raise InputError(f"{path} is larger than {_FILE_BYTES >> 20} MiB.", "Is this the mapping file?")
        document = json.loads(data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give the path of a mapping file.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.", "See the example in docs/outputs.md.") from error
    if not isinstance(document, dict) or document.get("version") != FILE_VERSION or "mappings" not in document:
        raise InputError(
            f"{path} is not a mapping file of version {FILE_VERSION}.",
            'Start it with {"version": 1, "mappings": [...]}; see docs/outputs.md.',
        )
    return parse_mappings(document["mappings"], str(path))


def parse_mappings(rows: object, where: str) -> tuple[ControlMapping, ...]:
    """Parse mappings from a list of JSON objects. where: named in errors."""
    if not isinstance(rows, list) or len(rows) > MAX_MAPPINGS:
        raise InputError(f"mappings of {where} must be a list of at most {MAX_MAPPINGS}.")
    mappings = tuple(_parse_row(row, f"{where}, mapping {index}") for index, row in enumerate(rows, 1))
    seen: set[tuple[str, str]] = set()
    for mapping in mappings:
        key = (mapping.address, mapping.control)
        if key in seen:
            raise InputError(f"{where} maps {key[0]} to {key[1]} twice.", "Keep one of the two.")
        seen.add(key)
    return mappings


def by_address(mappings: Sequence[ControlMapping]) -> Mapping[str, tuple[ControlMapping, ...]]:
    """The mappings by address."""
    table: dict[str, tuple[ControlMapping, ...]] = {}
    for mapping in mappings:
        table[mapping.address] = (*table.get(mapping.address, ()), mapping)
    return table


def _parse_row(row: object, where: str) -> ControlMapping:
    known = {field.name: field.type for field in fields(ControlMapping)}
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object.", f"Its fields are {', '.join(known)}.")
    for name, value in row.items():
        if name not in known:
            raise InputError(f"{where} has an unknown field {name!r}.", f"Known fields: {', '.join(known)}.")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, str) if name in ("address", "control") else number):
            raise InputError(
                f"{where}: {name} cannot be {value!r}.", "address and control are strings, the others are numbers."
            )
    if "address" not in row or "control" not in row:
        raise InputError(f"{where} needs an address and a control.")
    try:
        return ControlMapping(**row)
    except ControlError as error:
        raise ControlError(f"{where}: {error.message}", error.remedy) from error


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ControlError(f"{name} is mapped to a controller that sent {value!r}.", "Send a number from 0 to 1.")
    return float(value)
