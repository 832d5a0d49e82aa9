"""The JSON of a session's outputs as pydantic models. Which kinds there are, and what each is asked, is a table's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from app.outputs.output_kind import OutputKind

from .schema import Strict
from .told import Told


class OutputView(Strict):
    """An output at this moment. done, dropped: frames. text: for the user; of a failed one, why.

    recording, file_url: null but for a recording; the file is there once it is stopped.
    """

    id: str
    kind: str
    phase: Literal["starting", "running", "retrying", "stopped", "failed"]
    done: int
    dropped: int
    text: Told
    recording: str | None
    file_url: str | None


class OutputList(Strict):
    """All outputs of a session, in the order in which they were started."""

    outputs: list[OutputView]


class RecordingView(Strict):
    """A recording. running: it is still written, and cannot be downloaded yet. size: bytes so far."""

    id: str
    running: bool
    size: int
    file_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """The models with the names of a table's kinds. request: the requests of all kinds, told apart by `kind`."""

    request: Any
    view: type[OutputView]
    list: type[OutputList]


def output_schema(kinds: Sequence[OutputKind[Any]]) -> OutputSchema:
    """kinds: two or more."""
    name: Any = Literal[tuple(kind.name for kind in kinds)]
    request: Any = reduce(or_, (kind.request for kind in kinds))
    view = create_model("OutputView", __base__=OutputView, __doc__=OutputView.__doc__, kind=(name, ...))
    views: Any = GenericAlias(list, (view,))
    return OutputSchema(
        request=Annotated[request, Field(discriminator="kind")],
        view=view,
        list=create_model("OutputList", __base__=OutputList, __doc__=OutputList.__doc__, outputs=(views, ...)),
    )
