"""Owns where an engine comes from, so that another process can make the same one. Independent of engines."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A function of a module, with keyword arguments that can be pickled, that returns an engine run eagerly.

    model: its name, for people. bundled: whether it is one of our own, small enough to be compiled unasked. lora:
    its LoRA files and weights, for people.
    """

    model: str
    module: str
    function: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    bundled: bool = False
    lora: str = ""

    def engine(self) -> Any:
        """Make the engine."""
        return getattr(importlib.import_module(self.module), self.function)(**self.arguments)
