"""Owns the timeline of a story: timed control changes, as JSON. Independent of engines and of the page.

A file is a list of entries, each with `at_s` and the controls that change then, by the names of the control table:
[{"at_s": 0, "prompt": "a cat"}, {"at_s": 4, "prompt": "a robot", "scene_cut": true}]. The page reads and writes it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipelines.core.control_table import CONTROLS, STREAM_CONTROLS
from pipelines.core.controls import Control
from pipelines.core.errors import ControlError, InputError

MAX_ENTRIES = 10_000
MAX_AT_S = 1e6
_EXAMPLE = '[{"at_s": 0, "prompt": "a cat"}, {"at_s": 4.5, "prompt": "a robot", "scene_cut": true}]'


class TimelineError(InputError):
    """A timeline that cannot be read, or has an entry that cannot be applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """One entry. number: its index in the file, from 1. at_s: seconds from the beginning of the output."""

    number: int
    at_s: Fraction
    control: Control

    @property
    def name(self) -> str:
        """The entry's name in messages."""
        return f"entry {self.number} (at {float(self.at_s):g} s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """cues: ordered by time, ties in file order. source: the timeline's name in messages."""

    cues: tuple[Cue, ...] = ()
    source: str = ""

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """Read a file. Raises TimelineError, which names the entry."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TimelineError(f"The timeline {path} cannot be read: {error}.", "Give a JSON file.") from error
        return cls.parse(text, path.name)

    @classmethod
    def parse(cls, text: str, source: str) -> Timeline:
        """Parse the text of a file. Raises TimelineError, which names the entry."""
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise TimelineError(f"{source} is not JSON: {error}.", f"A timeline looks like {_EXAMPLE}.") from error
        if not isinstance(entries, list) or not entries:
            raise TimelineError(f"{source} is not a list of entries.", f"A timeline looks like {_EXAMPLE}.")
        if len(entries) > MAX_ENTRIES:
            raise TimelineError(f"{source} has {len(entries)} entries.", f"Keep it to {MAX_ENTRIES}.")
        cues = [_cue(entry, number, source) for number, entry in enumerate(entries, 1)]
        return cls(cues=tuple(sorted(cues, key=lambda cue: cue.at_s)), source=source)

    def refusal(self, cue: Cue, error: InputError) -> TimelineError:
        """`error` as an error of this entry."""
        return _refusal(self.source, cue.name, error.message, error.remedy)


def _refusal(source: str, entry: str, message: str, remedy: str) -> TimelineError:
    return TimelineError(f"{source}, {entry}: {message}", remedy)


def _cue(entry: object, number: int, source: str) -> Cue:
    name = f"entry {number}"
    if not isinstance(entry, Mapping) or "at_s" not in entry:
        raise _refusal(
            source, name, f"{_short(entry)} is not an object with at_s.", f"A timeline looks like {_EXAMPLE}."
        )
    at_s = entry["at_s"]
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s <= MAX_AT_S or math.isnan(at_s):
        raise _refusal(source, name, f"at_s cannot be {_short(at_s)}.", f"Give seconds from 0 to {MAX_AT_S:g}.")
    name = f"{name} (at {at_s:g} s)"
    values = {key: value for key, value in entry.items() if key != "at_s"}
    if not values:
        raise _refusal(source, name, "nothing changes.", "Add a control, for example a prompt.")
    for key, value in values.items():
        if key in CONTROLS and key not in STREAM_CONTROLS:
            raise _refusal(source, name, f"{key} cannot change in a stream.", "It is an option of the command.")
        if value is None:
            raise _refusal(source, name, f"{key} cannot be null.", "Give a value, or omit it.")
    try:
        control = Control.of(values)
    except ControlError as error:
        raise _refusal(source, name, error.message, error.remedy) from error
    return Cue(number=number, at_s=Fraction(repr(at_s)), control=control)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
