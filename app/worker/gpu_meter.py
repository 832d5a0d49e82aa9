"""What the tensor library holds of the worker's GPU. Knows no pipe and no engine."""

from __future__ import annotations

from collections.abc import Callable

from .messages import GpuMemory


def gpu_meter(device: str) -> Callable[[], GpuMemory] | None:
    """How to ask for the memory of a device ("cuda:0", ...); None for those without memory of their own.

    Asking reads two counters of the allocator; the device is not waited for.
    """
    if not device.startswith("cuda"):
        return None
    import torch  # only a worker with a GPU

    def read() -> GpuMemory:
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return GpuMemory(allocated_bytes=allocated, reserved_bytes=reserved)

    return read
