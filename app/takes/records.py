"""What a take consists of: one record per event, and each record's line of JSON.

Owns the schema. Independent of workers, files and engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pipelines.core.controls import Control
from pipelines.core.preparation import PartForm
from pipelines.core.prompts import WeightedPrompt

TAKE_SCHEMA = 1
Outcome = Literal["accepted", "skipped", "refused"]

# ---- from the worker: in the order in which the engine was driven ----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A new stream: the take's first record, and again after a restart of the worker.

    machine: see takes/machine.py. controls: the complete state. after: number of the newest input offered before this;
    those inputs belong to no stream of the take. width, height: pixels.
    """

    kind: ClassVar[str] = "open"
    machine: Mapping[str, object]
    controls: Mapping[str, object]
    width: int
    height: int
    prompt_only: bool
    after: int
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Controls were changed. tick: the first with the change. after: number of the newest input offered before."""

    kind: ClassVar[str] = "control"
    controls: Mapping[str, object]
    tick: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Input `seq` was offered to the stream. A refusal is written once, however often it was retried."""

    kind: ClassVar[str] = "push"
    seq: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Frames from the prompt alone were requested and accepted."""

    kind: ClassVar[str] = "generate"
    frames: int
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """The engine ticked while the stream had something in flight. batch: rows of all streams; 0: unknown."""

    kind: ClassVar[str] = "tick"
    tick: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapped:
    """A part of the engine runs with another form from `tick` on. Written at the opening for all prepared parts.

    The other fields are those of pipelines.core.preparation.PartForm; recipe and plan are empty for the network as it
    is. inputs: [name, dtype, shape, strides] each. Takes from before plans have none.
    """

    kind: ClassVar[str] = "swap"
    tick: int
    part: str
    recipe: str
    plan: str
    files: str
    inputs: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """The source was switched: the prompt alone, or inputs. after: number of the newest input offered before."""

    kind: ClassVar[str] = "source"
    prompt_only: bool
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Frame `seq` of the stream was finished, but no output buffer was free: it was never delivered."""

    kind: ClassVar[str] = "lost"
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Nothing is recorded after this."""

    kind: ClassVar[str] = "stop"
    reason: str


TakeRecord = Opened | Changed | Pushed | Generated | Ticked | Swapped | Sourced | Lost | Stopped

# ---- from the front --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredInput:
    """An input that was offered, taken or not: `size` bytes of `file` from `offset`.

    seq: None for one dropped before decoding; width and height are then 0 and sha256 empty. format: see
    takes/inputs.py. decoder: the one that reproduces the pixels; empty if the format has only one. width, height
    and sha256: of the pixels offered to the stream.
    """

    kind: ClassVar[str] = "input"
    seq: int | None
    captured_ns: int
    file: str
    offset: int
    size: int
    format: str
    decoder: str
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOut:
    """Frame `seq` of the most recent stream was delivered. sha256: of its [H, W, 3] RGB bytes."""

    kind: ClassVar[str] = "frame"
    seq: int
    source_seq: int | None
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeEnded:
    """The take is complete. reason: empty if the user stopped it."""

    kind: ClassVar[str] = "end"
    reason: str


Line = TakeRecord | StoredInput | HandedOut | TakeEnded

_KINDS: Mapping[str, type[Any]] = MappingProxyType(
    {
        record.kind: record
        for record in (
            *(Opened, Changed, Pushed, Generated, Ticked, Swapped, Sourced, Lost, Stopped),
            *(StoredInput, HandedOut, TakeEnded),
        )
    }
)


def to_line(record: Line) -> dict[str, object]:
    """A record as a JSON object."""
    return {"kind": record.kind, **asdict(record)}


def from_line(line: Mapping[str, object]) -> Line:
    """The record of a JSON object. Raises ValueError for an invalid one."""
    kind = _KINDS.get(str(line.get("kind")))
    if kind is None:
        raise ValueError(f"unknown kind {line.get('kind')!r}")
    names = {f.name for f in fields(kind)}
    if names != line.keys() - {"kind"}:
        raise ValueError(f"a {kind.kind} line has the fields {sorted(line)}")
    record: Line = kind(**{name: line[name] for name in names})
    return record


def swapped_to(form: PartForm, tick: int) -> Swapped:
    """The record of a form that is used from `tick` on."""
    return Swapped(tick=tick, **asdict(form))


def form_of(record: Swapped) -> PartForm:
    """The form that a record, as written or as read, names. Raises ValueError if that is impossible."""
    return PartForm.of(asdict(record))


def plain_controls(values: Mapping[str, object]) -> dict[str, object]:
    """Controls as JSON values, for Control.of: prompts as [text, weight] pairs."""
    return {name: _plain(value) for name, value in values.items()}


def plain_change(control: Control) -> dict[str, object]:
    """What a change sets, as JSON values."""
    return plain_controls(control.changes())


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [[prompt.text, prompt.weight] for prompt in value if isinstance(prompt, WeightedPrompt)]
    return value
