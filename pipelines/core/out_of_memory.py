"""Owns how out-of-memory errors are told apart from other errors. Independent of engines and devices."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception, PyTorch's or Python's own, means that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    phrases = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)


class MemoryWatch:
    """A context manager that suppresses out-of-memory errors; `ran_out` tells afterwards whether there was one.

    The exception is released by then, and with its traceback the tensors of the failed attempt.
    """

    ran_out = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.ran_out = error is not None and is_out_of_memory(error)
        return self.ran_out
