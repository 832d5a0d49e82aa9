"""Reads a take's folder: the records in order, the inputs, and the hashes of the live frames.

A take whose process was killed ends with its last complete line. Independent of engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.core.errors import InputError

from .records import (
    TAKE_SCHEMA,
    HandedOut,
    Line,
    Lost,
    Opened,
    Pushed,
    Stopped,
    StoredInput,
    TakeEnded,
    TakeRecord,
    from_line,
)
from .writer import LOG_NAME

FrameKey = tuple[int, int]
"""(index of the stream in the take, from 0; the frame's seq in it)."""


@dataclass(slots=True, kw_only=True)
class Take:
    """folder: the take's. records: in order. inputs: in the order offered. hashes: sha256 of the frames delivered live.
    lost: finished frames that were never delivered. complete: ended normally, not killed."""

    folder: Path
    created: str
    records: list[TakeRecord] = field(default_factory=list)
    inputs: list[StoredInput] = field(default_factory=list)
    hashes: dict[FrameKey, str] = field(default_factory=dict)
    lost: set[FrameKey] = field(default_factory=set)
    complete: bool = False

    @property
    def opened(self) -> Opened:
        """The first record: the opening of the stream."""
        first = self.records[0]
        assert isinstance(first, Opened)
        return first


def read_take(folder: Path) -> Take:
    """Raises InputError if there is no take or it cannot be used."""
    log = folder / LOG_NAME
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise InputError(f"{folder} is not a take: {log.name} is missing.", "Give the folder of a take.") from error
    lines.pop()  # after the last line feed: nothing, or an incomplete line of a killed process
    if not lines:
        raise InputError(f"{folder} holds an empty take.", "The process was killed before anything was recorded.")
    take = Take(folder=folder, created=_created(lines[0], log))
    _collect(take, [_parsed(text, number, log) for number, text in enumerate(lines[1:], start=2)])
    if not take.records or not isinstance(take.records[0], Opened):
        raise InputError(f"{folder} holds an empty take.", "The recording was ended before the stream began.")
    return take


def _collect(take: Take, lines: list[Line]) -> None:
    stream = -1
    stored: set[int] = set()
    for line in lines:
        match line:
            case StoredInput():
                take.inputs.append(line)
                if line.seq is not None:
                    stored.add(line.seq)
            case HandedOut():
                take.hashes[stream, line.seq] = line.sha256
            case Lost():
                take.lost.add((stream, line.seq))
            case TakeEnded():
                take.complete = True
            case Stopped():
                pass
            case Pushed() if line.seq not in stored and line.outcome != "refused":
                return  # an input that was never written: nothing after it can be reproduced
            case _:
                stream += isinstance(line, Opened)
                take.records.append(line)


def _created(text: str, log: Path) -> str:
    header = _object(text, 1, log)
    if header.get("kind") != "take":
        raise InputError(f"{log} is not the log of a take.")
    if header.get("schema") != TAKE_SCHEMA:
        raise InputError(
            f"{log} has version {header.get('schema')} of the format; this Zoetrope reads {TAKE_SCHEMA}.",
            f"It was written by Zoetrope {header.get('zoetrope')}: render it with that.",
        )
    return str(header.get("created"))


def _parsed(text: str, number: int, log: Path) -> Line:
    try:
        return from_line(_object(text, number, log))
    except ValueError as error:
        raise InputError(f"Line {number} of {log} cannot be read: {error}.", "The file was changed.") from error


def _object(text: str, number: int, log: Path) -> Mapping[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"Line {number} of {log} is not JSON: {error}.", "The file was changed.") from error
    if not isinstance(found, dict):
        raise InputError(f"Line {number} of {log} is not a JSON object.", "The file was changed.")
    return found
