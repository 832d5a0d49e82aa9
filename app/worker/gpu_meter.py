"""How much GPU memory the tensor library holds. Independent of the pipe and the engine."""

from __future__ import annotations

from collections.abc import Callable

from .messages import GpuMemory


def gpu_meter(device: str) -> Callable[[], GpuMemory] | None:
    """Return a function that reads the memory of a device ("cuda:0", ...); None for devices other than CUDA.

    It reads two counters of the allocator and does not synchronise with the device.
    """
    if not device.startswith("cuda"):
        return None
    import torch  # only in a worker with a GPU

    def read() -> GpuMemory:
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return GpuMemory(allocated_bytes=allocated, reserved_bytes=reserved)

    return read
