"""Measures the KV cache alone: the cost of beginning a chunk and of a layer's exchange, and memory.

`python -m bench.kv_cache --json`: tiny, on the CPU.
`python -m bench.kv_cache --shape wan-1.3b --device cuda --compile --json`: 30 layers, 480x832, bf16, window 21; with
the measured time of copying the same bytes on that device for comparison.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cache.kv.bank import STORAGES
from cache.kv.cache import KVCache, KVShape
from cache.kv.kernels import PLAIN_KERNELS, compiled_kernels
from cache.kv.policies import make_policy
from cache.rotary import Rotary

SHAPES: Mapping[str, dict[str, Any]] = {
    "tiny": {"layers": 2, "heads": 2, "head_dim": 32, "grid": (8, 12)},
    "wan-1.3b": {"layers": 30, "heads": 12, "head_dim": 128, "grid": (30, 52)},
}
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "window 21": ("window", {"window_frames": 21}),
    "sink 3 of 12": ("sink", {"window_frames": 12, "sink_frames": 3}),
    "sink 3 of 12, absolute": ("sink", {"window_frames": 12, "sink_frames": 3, "positions": "absolute"}),
    "deep sink 10 of 21": ("deep-sink", {}),
    "participative 16 + 3": ("participative", {}),
    "heavy hitters 9 + 9 + 3": ("heavy-hitter", {"query_stride": 64}),
    "importance and redundancy 21": ("r1-kv", {"query_stride": 16}),
    "packed, top-k": ("packed", {}),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, including the device's work."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(cache: KVCache, chunks: int, warmup: int) -> dict[str, float]:
    """Medians over steady-state chunks: begin, exchange in the first pass and in a later one, for all layers."""
    shape, frames = cache.shape, cache.policy.chunk_frames
    device = torch.device(shape.device)
    size = (1, frames * shape.frame_tokens, shape.heads, shape.head_dim)
    queries, keys, values = (torch.randn(size, dtype=shape.dtype, device=device) for _ in range(3))

    def one_pass() -> None:
        view = cache.view([0])
        for layer in range(shape.layers):
            view.observe(layer, queries)
            view.exchange(layer, keys, values)

    times: dict[str, list[float]] = {"begin_ms": [], "first_pass_ms": [], "later_pass_ms": []}
    for chunk in range(warmup + chunks):
        measured = [timed(lambda: cache.begin(0, frames), device), timed(one_pass, device), timed(one_pass, device)]
        if chunk >= warmup:
            for name, value in zip(times, measured, strict=True):
                times[name].append(value)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def copy_ms(cache: KVCache) -> float:
    """Milliseconds to copy as many bytes as the window's keys: a lower bound on rotating them all."""
    shape = cache.shape
    size = (cache.ledger(0).length * shape.heads * shape.head_dim,)
    source, target = (torch.empty(size, dtype=shape.dtype, device=shape.device) for _ in range(2))
    device = torch.device(shape.device)
    one = statistics.median(timed(lambda: target.copy_(source), device) for _ in range(5))
    return round(one * shape.layers, 3)


def main(arguments: list[str] | None = None) -> int:
    """Print one line per case and storage, or one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.kv_cache", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--storage", choices=STORAGES, action="append", help="default: native")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="rotate and write with compiled kernels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    dtype = torch.bfloat16 if options.device != "cpu" else torch.float32
    kernels = compiled_kernels() if options.compile else PLAIN_KERNELS
    rows = []
    for case in options.case or CASES:
        name, settings = CASES[case]
        for storage in options.storage or ["native"]:
            shape = KVShape(**SHAPES[options.shape], dtype=dtype, device=options.device)
            policy = make_policy(name, grid=shape.grid, **settings)
            cache = KVCache(shape, policy, rotary=Rotary(shape.head_dim), storage=storage, kernels=kernels)
            figures = measure(cache, options.chunks, warmup=24 if name == "packed" else 10)
            rows.append(
                {
                    "case": case,
                    "storage": storage,
                    "attended_tokens": cache.ledger(0).length,
                    "bytes": cache.bytes,
                    **figures,
                    "copy_of_all_keys_ms": copy_ms(cache),
                }
            )
            if not options.json:
                print(rows[-1])
            del cache
    if options.json:
        print(json.dumps({"shape": options.shape, "device": options.device, "compiled": options.compile, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
