"""Owns the transfer buffers between host and device: what a tick uploads, and where finished pictures arrive.

On CUDA both are pinned, copies do not block, and events tell when a buffer may be reused. On the CPU the host buffers
of uploads are the device buffers themselves. Independent of what the buffers contain.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

_SETS = 2  # the host may fill one set while the device is still reading the other


class Uploads:
    """Named device tensors and the host buffers that a tick fills.

    In a tick: `begin`, write into `host(name)`, `send(name, count)`, and `end` when everything has been sent.
    """

    def __init__(self, buffers: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = {
            name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in buffers.items()
        }
        if self._cuda:
            self._hosts = [
                {name: torch.zeros(shape, dtype=dtype, pin_memory=True) for name, (shape, dtype) in buffers.items()}
                for _ in range(_SETS)
            ]
            self._events: list[torch.cuda.Event | None] = [None] * _SETS
        else:
            self._hosts, self._events = [self._device], [None]
        self._current = 0

    def device(self, name: str) -> torch.Tensor:
        """Return the tensor that the device reads."""
        return self._device[name]

    def host(self, name: str) -> torch.Tensor:
        """Return the tensor to fill, valid between `begin` and `end`."""
        return self._hosts[self._current][name]

    def begin(self) -> None:
        """Switch to the next set. It was last used two ticks ago, so this waits only if the host is that far ahead."""
        self._current = (self._current + 1) % len(self._hosts)
        event = self._events[self._current]
        if event is not None:
            event.synchronize()

    def send(self, name: str, count: int | None = None) -> None:
        """Copy the first `count` entries (all, by default) to the device; does not wait."""
        if self._cuda and count != 0:
            self._device[name][:count].copy_(self._hosts[self._current][name][:count], non_blocking=True)

    def end(self) -> None:
        """Mark the current set as in use until the device has read it."""
        if self._cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._events[self._current] = event


class Readback:
    """A fixed number of host buffers for the pictures of finished slots, [count, F, H, W, 3] uint8."""

    def __init__(self, count: int, shape: tuple[int, int, int, int], device: torch.device) -> None:
        self._pictures = torch.zeros((count, *shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._free = list(range(count - 1, -1, -1))
        self._count = count

    @property
    def free(self) -> int:
        """Number of free buffers."""
        return len(self._free)

    def acquire(self) -> int:
        """Take a free buffer; there must be one."""
        return self._free.pop()

    def release(self, buffer: int) -> None:
        """Return a buffer to the free ones."""
        assert buffer not in self._free, buffer
        self._free.append(buffer)

    def check_integrity(self, used: Sequence[int]) -> None:
        """Assert that every buffer is either free or in `used`, exactly once."""
        assert sorted([*self._free, *used]) == list(range(self._count)), (self._free, used, self._count)

    def receive(self, buffer: int, pictures: torch.Tensor) -> None:
        """Start copying pictures [F or fewer, H, W, 3] uint8 from the device; does not wait."""
        self._pictures[buffer, : len(pictures)].copy_(pictures, non_blocking=True)

    def picture(self, buffer: int, frame: int) -> npt.NDArray[np.uint8]:
        """Return a copy of one picture [H, W, 3] uint8, owned by the caller. The transfer must be complete."""
        picture: npt.NDArray[np.uint8] = self._pictures[buffer, frame].numpy().copy()
        return picture


class Mark:
    """A point in the device's work: the end of a tick, or of a part of it."""

    def __init__(self, device: torch.device) -> None:
        self._event = _timing_event() if device.type == "cuda" else None
        self._time_ns = 0

    def record(self) -> None:
        """Set the mark at this point of the device's work."""
        if self._event is not None:
            self._event.record()
        else:
            self._time_ns = time.perf_counter_ns()

    def passed(self) -> bool:
        """Return whether the device has reached the mark; never waits."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Wait until the device has reached the mark."""
        if self._event is not None:
            self._event.synchronize()

    def ms_since(self, earlier: Mark) -> float:
        """Return the device time between two passed marks, in milliseconds."""
        if self._event is not None and earlier._event is not None:
            return float(earlier._event.elapsed_time(self._event))
        return (self._time_ns - earlier._time_ns) / 1e6


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
