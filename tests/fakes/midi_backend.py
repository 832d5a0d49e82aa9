"""A backend for mido without any device: tests send messages into the ports that were opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PORTS = ("Knobs", "Keys")
opened: list[Input] = []


class Input:
    """A port that mido opens through its Backend."""

    def __init__(self, name: str, callback: Callable[[Any], None] | None = None, **_: object) -> None:
        assert name in PORTS
        self.name = name
        self.callback = callback
        self.closed = False
        opened.append(self)

    def receive(self, message: Any) -> None:
        """As if the device had sent it."""
        assert self.callback is not None
        self.callback(message)

    def close(self) -> None:
        self.closed = True


def get_devices(**_: object) -> list[dict[str, object]]:
    """What mido asks for names."""
    return [{"name": name, "is_input": True, "is_output": False} for name in PORTS]
