"""Owns the transfer buffers between host and device: what a tick uploads, and where finished pictures arrive.

On CUDA both are pinned and copies do not block. On the CPU the host buffers of uploads are the device buffers
themselves. Independent of what the buffers contain, and of when they may be reused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

_SETS = 2  # the host may fill one set while the device is still reading the other
_ALIGNMENT = 64  # bytes


Layout: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of named tensors."""


class Uploads:
    """Named device tensors and the host buffers that a tick fills: small tables, which are sent together, and arrays,
    of which a tick sends the entries that it needs.

    In a tick: `begin`, write into `table(name)` and `host(name)`, and run the copies that `tables_copy` and
    `array_copy` return. Whoever calls `begin` makes sure that the device has done the copies of the call before the
    last: the buffers of that tick are filled again.
    """

    def __init__(self, tables: Layout, arrays: Layout, device: torch.device, *, shared: bool) -> None:
        """shared: the host buffers are the device tensors themselves."""
        self._shared = shared
        pinned, sets = device.type == "cuda", 0 if shared else _SETS
        self._block = torch.zeros(_block_bytes(tables), dtype=torch.uint8, device=device)
        self._arrays = {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in arrays.items()}
        self._blocks = [torch.zeros_like(self._block, device="cpu", pin_memory=pinned) for _ in range(sets)]
        self._hosts = [
            {name: torch.zeros_like(array, device="cpu", pin_memory=pinned) for name, array in self._arrays.items()}
            for _ in range(sets)
        ]
        if shared:
            self._blocks, self._hosts = [self._block], [self._arrays]
        self._tables = [{name: view.numpy() for name, view in _views(block, tables).items()} for block in self._blocks]
        self._device = {**_views(self._block, tables), **self._arrays}
        self._current = 0

    def device(self, name: str) -> torch.Tensor:
        """Return the tensor that the device reads."""
        return self._device[name]

    def begin(self) -> None:
        """Switch to the other set of host buffers."""
        self._current = (self._current + 1) % len(self._blocks)

    def table(self, name: str) -> npt.NDArray[Any]:
        """Return the table to fill."""
        return self._tables[self._current][name]

    def host(self, name: str) -> torch.Tensor:
        """Return the array to fill."""
        return self._hosts[self._current][name]

    def tables_copy(self) -> Callable[[], None]:
        """Return a call that copies all tables to the device, without waiting."""
        return self._copy(self._block, self._blocks[self._current])

    def array_copy(self, name: str, *index: int | slice) -> Callable[[], None]:
        """Return a call that copies array[index], a contiguous part, to the device, without waiting."""
        return self._copy(self._arrays[name][index], self._hosts[self._current][name][index])

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
        def copy() -> None:
            if not self._shared:
                target.copy_(source, non_blocking=True)

        return copy


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _block_bytes(tables: Layout) -> int:
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in tables.values())


def _views(block: torch.Tensor, tables: Layout) -> dict[str, torch.Tensor]:
    """Return the tables in a block of bytes."""
    views, start = {}, 0
    for name, (shape, dtype) in tables.items():
        size = math.prod(shape) * dtype.itemsize
        views[name] = block[start : start + size].view(dtype).view(shape)
        start += _aligned(size)
    return views


class Readback:
    """A fixed number of host buffers for the pictures of finished slots, [count, F, H, W, 3] uint8."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int, int],
        device: torch.device,
        make_mark: Callable[[], Mark] | None = None,
    ) -> None:
        """make_mark: makes the mark of each buffer; None: whoever fills a buffer has its own."""
        self._marks = [] if make_mark is None else [make_mark() for _ in range(count)]
        self._pictures = torch.zeros((count, *shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._count = count

    @property
    def count(self) -> int:
        """Number of buffers."""
        return self._count

    @property
    def free(self) -> int:
        """Number of free buffers."""
        return len(self._free)

    def acquire(self) -> int:
        """Take a free buffer; there must be one."""
        buffer = self._free.pop()
        self._users[buffer] = 1
        return buffer

    def share(self, buffer: int) -> int:
        """Return a buffer in use, for one more user, who releases it too."""
        assert self._users[buffer], buffer
        self._users[buffer] += 1
        return buffer

    def release(self, buffer: int) -> None:
        """End one use of a buffer; it is free once there is none."""
        assert self._users[buffer], buffer
        self._users[buffer] -= 1
        if not self._users[buffer]:
            self._free.append(buffer)

    def check_integrity(self, used: Sequence[int]) -> None:
        """Assert that every buffer is either free or in `used`, once for each of its users."""
        assert sorted([*self._free, *set(used)]) == list(range(self._count)), (self._free, used, self._count)
        assert [used.count(buffer) for buffer in range(self._count)] == self._users, (used, self._users)

    def receive(self, buffer: int, pictures: torch.Tensor) -> None:
        """Start copying pictures [F or fewer, H, W, 3] uint8 from the device; does not wait."""
        self._pictures[buffer, : len(pictures)].copy_(pictures, non_blocking=True)

    def mark(self, buffer: int) -> Mark:
        """Return the mark of a buffer, to be recorded behind its transfer."""
        return self._marks[buffer]

    def picture(self, buffer: int, frame: int) -> npt.NDArray[np.uint8]:
        """Return a copy of one picture [H, W, 3] uint8, owned by the caller. The transfer must be complete."""
        picture: npt.NDArray[np.uint8] = self._pictures[buffer, frame].numpy().copy()
        return picture


class Mark:
    """A point in the device's work: the end of a tick, or of a part of it."""

    def __init__(self, device: torch.device) -> None:
        self._event = _timing_event() if device.type == "cuda" else None
        self._time_ns = 0

    @property
    def event(self) -> torch.cuda.Event | None:
        """The CUDA event; None on the CPU."""
        return self._event

    def record(self, cuda_stream: torch.cuda.Stream | None = None) -> None:
        """Set the mark at this point of the device's work. cuda_stream: None: the current one."""
        if self._event is not None:
            self._event.record(cuda_stream)
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
