"""Owns what a row of the control table says of a control. Knows no control, no engine and no widget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types import Propagation

Kind = Literal["float", "int", "bool", "choice", "text", "prompts"]
EngineKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSpec:
    """One row of the table.

    minimum, maximum: inclusive, for kinds float and int. choices: for kind choice.
    propagation: when a change is felt. cut_propagation: the class that holds instead while `prompt_change` is "cut" or
    "flush". A slot of a video model is a chunk. engines: the kinds of engine for which it means anything. momentary: it
    asks for something once and goes back to its default by itself, so a new stream is not told of it.
    """

    name: str
    kind: Kind
    default: object
    help: str
    propagation: Propagation
    cut_propagation: Propagation | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    engines: tuple[EngineKind, ...] = ("image", "video")
    momentary: bool = False
