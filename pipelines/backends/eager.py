"""Owns the plainest way to run a part of a tick: call it."""

from __future__ import annotations

from collections.abc import Callable, Hashable


class EagerBackend:
    """Runs each part as it comes, on any device."""

    name = "eager"

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Call `part`; the key does not matter here."""
        part()

    def invalidate(self) -> None:
        """Nothing is kept."""
