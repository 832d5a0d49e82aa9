"""Owns how running out of memory is told from other errors. Independent of engines and devices."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of the tensor library, or Python's own, says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class MemoryWatch:
    """A context that ends quietly when memory runs out inside; `ran_out` says so afterwards.

    The exception is gone by then, and with its traceback the tensors of the attempt.
    """

    ran_out = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.ran_out = error is not None and is_out_of_memory(error)
        return self.ran_out
