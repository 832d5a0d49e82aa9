"""Owns the contract of a backend: how a part of a tick (encode, denoise, decode) is executed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol


class Backend(Protocol):
    """Executes parts of a tick. A part reads and writes static buffers only and never waits for the device."""

    @property
    def name(self) -> str: ...

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Do what `part` does, once. Calls with equal keys have the same shapes and buffers."""
        ...

    def invalidate(self) -> None:
        """Forget what was compiled or captured: the model has changed (a LoRA's scale)."""
        ...
