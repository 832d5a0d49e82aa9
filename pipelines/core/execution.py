"""Owns the contract of an executor: how a part of a tick is run, as it is or captured; and the plain executor.

An executor belongs to one engine and does not depend on what it runs. Backends choose it: pipelines/backends/.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch


class Calls(Protocol):
    """Calls of functions with inputs and a result, for one place of a tick: the passes of a denoiser, one decoder."""

    def __call__(
        self, key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
    ) -> torch.Tensor:
        """function(*inputs); the result is valid until the next call.

        The function does not wait for the device and keeps no tensor of its own. Calls with equal keys read the same
        addresses, except for their inputs; None: the call reads memory that does not outlast it. kept: objects whose
        memory the function reads.
        """
        ...


class Executor(Protocol):
    """Runs the parts of one engine's ticks."""

    @property
    def graphs(self) -> int:
        """How many CUDA graphs have been captured."""
        ...

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Do what `part` does, once. It reads and writes static buffers only and never waits for the device. Calls with
        equal keys have the same shapes and buffers.
        """
        ...

    def calls(self, *, warm_calls: int) -> Calls:
        """For functions with inputs and a result. warm_calls (>= 1): how often a key runs as it is before it may be
        captured.
        """
        ...

    def invalidate(self) -> None:
        """Forget what was captured: what it reads has changed (a LoRA's scale)."""
        ...


class EagerExecutor:
    """Runs each part as it comes, on any device."""

    graphs = 0

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Call `part`; the key does not matter here."""
        part()

    def calls(self, *, warm_calls: int) -> Calls:
        """Plain calls."""
        return call_eagerly

    def invalidate(self) -> None:
        """Nothing is kept."""


def call_eagerly(
    key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
) -> torch.Tensor:
    """function(*inputs), as it is."""
    return function(*inputs)
