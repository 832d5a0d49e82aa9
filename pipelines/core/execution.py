"""Owns the contract of an executor, which runs the parts of a tick eagerly or captured, and the eager executor.

Independent of what is run. Each engine has its own executor, chosen by its backend: pipelines/backends/.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch


class Calls(Protocol):
    """Calls functions that have inputs and a result, at one point of a tick: the passes of a denoiser, one decoder."""

    def __call__(
        self, key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
    ) -> torch.Tensor:
        """Return function(*inputs); the result is valid until the next call.

        The function must not wait for the device or keep tensors of its own. Calls with equal keys must read the same
        addresses, except for their inputs; key None: the call reads memory that does not outlive it, so it is never
        captured. kept: objects whose memory the function reads, to be kept alive.
        """
        ...


class Executor(Protocol):
    """Runs the parts of one engine's ticks."""

    @property
    def graphs(self) -> int:
        """Number of captured CUDA graphs."""
        ...

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Run `part` once. It must read and write static buffers only and never wait for the device. Calls with
        equal keys must have the same shapes and buffers.
        """
        ...

    def calls(self, *, warm_calls: int) -> Calls:
        """Return a caller for functions with inputs and a result. warm_calls (>= 1): how often a key runs eagerly
        before it may be captured.
        """
        ...

    def invalidate(self) -> None:
        """Drop everything captured, because what it reads has changed (a LoRA's scale)."""
        ...


class EagerExecutor:
    """Runs every part eagerly, on any device."""

    graphs = 0

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Call `part`; the key is ignored."""
        part()

    def calls(self, *, warm_calls: int) -> Calls:
        """Return `call_eagerly`."""
        return call_eagerly

    def invalidate(self) -> None:
        """Do nothing: nothing is captured."""


def call_eagerly(
    key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
) -> torch.Tensor:
    """Return function(*inputs). See `Calls`."""
    return function(*inputs)
