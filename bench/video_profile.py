"""Profiles a piece of work on a CUDA device: kernels by kind, and the device's peak for matrix products."""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

_KINDS = (
    ("attention", re.compile(r"sdpa|flash|fmha|mha_|attention", re.IGNORECASE)),
    ("convolutions", re.compile(r"conv|implicit|wgrad|dgrad|fprop|winograd|nchwtonhwc|nhwctonchw", re.IGNORECASE)),
    ("matrix products", re.compile(r"gemm|nvjet|cutlass|cublas|splitk|gemv", re.IGNORECASE)),
    ("fused pointwise (Triton)", re.compile(r"^triton_", re.IGNORECASE)),
    ("copies and indexing", re.compile(r"memcpy|memset|copy|index|cat", re.IGNORECASE)),
)


def profile(device: torch.device, work: Callable[[], None], *, times: int = 2) -> dict[str, object]:
    """Kernel milliseconds of the work (a chunk, some ticks) by kind, the longest kernels, and the idle time."""
    if device.type != "cuda":
        return {"note": "kernels are timed on CUDA devices only"}
    work()
    torch.cuda.synchronize(device)
    with torch_profile(activities=[ProfilerActivity.CUDA]) as recorded:
        start = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize(device)
        wall_ms = 1e3 * (time.perf_counter() - start) / times
    by_name: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for event in recorded.events() or ():
        if event.device_type.name == "CUDA":
            spent, count = by_name[event.name]
            by_name[event.name] = (spent + event.time_range.elapsed_us() / 1e3 / times, count + 1)
    by_kind: dict[str, float] = defaultdict(float)
    for name, (spent, _) in by_name.items():
        by_kind[_kind(name)] += spent
    busy = sum(by_kind.values())
    longest = sorted(by_name.items(), key=lambda item: -item[1][0])[:16]
    return {
        "ms_while_profiled": round(wall_ms, 1),
        "kernels_ms": round(busy, 1),
        "without_a_kernel_ms": round(wall_ms - busy, 1),
        "kinds_ms": {kind: round(spent, 1) for kind, spent in sorted(by_kind.items(), key=lambda item: -item[1])},
        "longest": [
            {"kernel": name[:90], "ms": round(spent, 2), "calls": count // times} for name, (spent, count) in longest
        ],
    }


def matmul_tflops(device: torch.device, size: int = 8192) -> float | None:
    """Throughput of a bfloat16 matrix product of size³ on this device: the practical peak."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn((size, size), device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds: list[float] = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return round(2 * size**3 / statistics.median(seconds[3:]) / 1e12, 1)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other kernels")
