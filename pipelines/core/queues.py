"""Owns the queues of a device: each runs work in order, beside the other queues and the host.

On CUDA a queue is a CUDA stream. On the CPU work is done as it is issued, so queues are always in step. Independent of
what is run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from .transfers import Mark


class Queue(Protocol):
    """Runs work on a device, in the order in which it is issued. No method waits for the device."""

    def run(self, work: Callable[[], object]) -> None:
        """Issue the device work that `work` consists of. `work` itself is called at once."""
        ...

    def record(self, mark: Mark) -> None:
        """Set the mark behind what has been issued to this queue."""
        ...

    def wait(self, mark: Mark) -> None:
        """Let what is issued to this queue from now on wait for the mark as it was last recorded, on any queue. A mark
        that was never recorded has passed."""
        ...


class Queues(Protocol):
    """The queues of one device. shared: whether the device reads host memory directly, so that nothing is copied."""

    @property
    def shared(self) -> bool: ...
    def queue(self) -> Queue:
        """Return a new queue."""
        ...

    def current(self) -> Queue:
        """Return the queue on which the caller's own work runs."""
        ...

    def mark(self) -> Mark:
        """Return a new mark."""
        ...

    def settle(self) -> None:
        """Wait until the device has nothing left to do."""
        ...


class HostQueue:
    """The CPU's `Queue`."""

    def run(self, work: Callable[[], object]) -> None:
        """Do the work."""
        work()

    def record(self, mark: Mark) -> None:
        """Set the mark, which has passed then."""
        mark.record()

    def wait(self, mark: Mark) -> None:
        """Do nothing: all earlier work is done."""


class HostQueues:
    """The CPU's `Queues`."""

    shared = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._queue = device, HostQueue()

    def queue(self) -> Queue:
        """Return the only queue."""
        return self._queue

    def current(self) -> Queue:
        """Return the only queue."""
        return self._queue

    def mark(self) -> Mark:
        """See `Queues`."""
        return Mark(self._device)

    def settle(self) -> None:
        """Do nothing: all work is done."""


class CudaQueue:
    """A CUDA stream as a `Queue`."""

    def __init__(self, cuda_stream: torch.cuda.Stream) -> None:
        self._cuda_stream = cuda_stream

    def run(self, work: Callable[[], object]) -> None:
        """See `Queue`."""
        with torch.cuda.stream(self._cuda_stream):
            work()

    def record(self, mark: Mark) -> None:
        """See `Queue`."""
        mark.record(self._cuda_stream)

    def wait(self, mark: Mark) -> None:
        """See `Queue`."""
        assert mark.event is not None
        self._cuda_stream.wait_event(mark.event)


class CudaQueues:
    """The CUDA streams of one device as `Queues`. They do not wait for the default stream by themselves."""

    shared = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def queue(self) -> Queue:
        """See `Queues`."""
        return CudaQueue(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]

    def current(self) -> Queue:
        """See `Queues`."""
        return CudaQueue(torch.cuda.current_stream(self._device))

    def mark(self) -> Mark:
        """See `Queues`."""
        return Mark(self._device)

    def settle(self) -> None:
        """See `Queues`."""
        torch.cuda.synchronize(self._device)


def device_queues(device: torch.device) -> Queues:
    """Return the queues of a device."""
    return CudaQueues(device) if device.type == "cuda" else HostQueues(device)
