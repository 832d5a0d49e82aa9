"""Owns CUDA graphs of single calls with static inputs and results: calls run eagerly, then are captured and replayed.

Independent of what is captured. The graphs of one object share a memory pool, so they must be replayed one after the
other on one CUDA stream; calls that overlap in time need different objects, and CUDA streams of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    result: torch.Tensor
    kept: object
    """Keeps alive what the graph reads."""


class CapturedCalls:
    """`Calls` on a CUDA device. warm_calls: how often a key runs eagerly before it is captured. max_graphs: keys beyond
    that number always run eagerly, since each graph holds memory.
    """

    def __init__(self, device: torch.device, *, warm_calls: int, max_graphs: int = 64) -> None:
        assert warm_calls >= 1, warm_calls
        self._device, self._warm_calls, self._max_graphs = device, warm_calls, max_graphs
        self._inputs: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        self._warm: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def graphs(self) -> int:
        """Number of captured graphs."""
        return len(self._captured)

    def __call__(
        self, key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
    ) -> torch.Tensor:
        """See `Calls`. Inputs are copied to static buffers."""
        if key is None:
            return function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        static = self._inputs.get(shapes)
        if static is None:
            with torch.inference_mode(False):
                static = self._inputs[shapes] = tuple(
                    torch.empty_like(tensor, device=self._device) for tensor in inputs
                )
        for buffer, given in zip(static, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        graph_key = (key, shapes)
        captured = self._captured.get(graph_key)
        if captured is None:
            seen = self._warm[graph_key] = self._warm.get(graph_key, 0) + 1
            result = function(*static)
            if seen < self._warm_calls or len(self._captured) >= self._max_graphs:
                return result
            captured = self._captured[graph_key] = self._capture(function, static, result, kept)
            return captured.result
        captured.graph.replay()
        return captured.result

    def invalidate(self) -> None:
        """Drop all graphs; calls warm up and are captured again."""
        torch.cuda.synchronize(self._device)
        self._captured.clear()
        self._warm.clear()

    def _capture(
        self,
        function: Callable[..., torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        example: torch.Tensor,
        kept: object,
    ) -> _Captured:
        """Capture a graph. Its result is initially that of the last warm-up call, since recording executes nothing."""
        with torch.inference_mode(False):
            result = torch.empty_like(example)
        result.copy_(example)

        def body() -> None:
            result.copy_(function(*inputs))

        return _Captured(record(body, self._device, self._pool, errors="thread_local"), result, kept)


def record(
    body: Callable[[], None], device: torch.device, pool: Any, *, errors: str = "global"
) -> torch.cuda.CUDAGraph:
    """Record a graph of what `body` does, without executing it.

    pool: from torch.cuda.graph_pool_handle. errors: PyTorch's capture_error_mode, which threads' forbidden calls make
    the recording fail: those of any thread ("global") or only of this one ("thread_local").

    It is recorded on the current CUDA stream, since graphs keep the libraries' workspaces of the one on which they were
    recorded (cuBLAS has one for each), and those that overlap must not share them. The default one cannot record:
    PyTorch's own for that purpose takes its place.
    """
    graph, cuda_stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    own = None if cuda_stream == torch.cuda.default_stream(device) else cuda_stream
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, stream=own, capture_error_mode=errors):
        body()
    return graph
