"""Owns how many threads PyTorch works with in a tick whose networks are compiled and have threads of their own.

PyTorch's operations around such networks are small: a second thread costs more to wake than it saves. Independent of
engines and recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

from pipelines.core.execution import EagerExecutor


@contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Let PyTorch work with `count` threads in this thread's calls, >= 1; gives how many it had."""
    before = torch.get_num_threads()
    if count == before:
        yield before
        return
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


class OneThreadExecutor(EagerExecutor):
    """Runs every part of a tick eagerly with one thread; a plain network in it must ask for more."""

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Call `part`; the key is ignored."""
        with torch_threads(1):
            part()
