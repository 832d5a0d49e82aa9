"""Owns what TensorRT says while it works: errors are kept, for the message of a failure. Independent of plans."""

from __future__ import annotations

import logging
import re
from typing import Any

_logger = logging.getLogger(__name__)
_KEPT = 20
_NOISE = (r"^\w+::\w+: ", r"Error Code \d+: \w+ ", r"^\(\[[^]]*\] ", r"\s+In \w+ at /_src/\S+$", r"^\w+Exception: \S+ ")


class Messages:
    """The errors since the last `take`, oldest first; everything that TensorRT says also goes to the log."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def take(self) -> list[str]:
        """Return the errors since the last call."""
        taken, self._errors = self._errors, []
        return taken

    def add(self, text: str, *, error: bool) -> None:
        """Add what TensorRT said."""
        _logger.debug("%s", text)
        if error:
            self._errors = [*self._errors, text][-_KEPT:]


def make_logger(api: Any, messages: Messages) -> Any:
    """Return TensorRT's kind of logger. A process has one: the first, as long as an object that has it lives."""

    class Logger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= api.ILogger.WARNING:
                messages.add(text, error=severity <= api.ILogger.ERROR)

    return Logger()


def plain(text: str) -> str:
    """Return what an error of TensorRT says, without the places in its source that surround it."""
    for pattern in _NOISE:
        text = re.sub(pattern, "", text.strip())
    return text.rstrip(").").strip()
