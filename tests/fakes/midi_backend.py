"""A mido backend without devices: tests send messages to the opened ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PORTS = ("Knobs", "Keys")
opened: list[Input] = []


class Input:
    """A port, opened by mido through its Backend."""

    def __init__(self, name: str, callback: Callable[[Any], None] | None = None, **_: object) -> None:
        assert name in PORTS
        self.name = name
        self.callback = callback
        self.closed = False
        opened.append(self)

    def receive(self, message: Any) -> None:
        """Deliver a message as if a device had sent it."""
        assert self.callback is not None
        self.callback(message)

    def close(self) -> None:
        self.closed = True


def get_devices(**_: object) -> list[dict[str, object]]:
    """List the ports, for mido."""
    return [{"name": name, "is_input": True, "is_output": False} for name in PORTS]
