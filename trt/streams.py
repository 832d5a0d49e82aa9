"""Owns the CUDA streams and graphs that a plan is run with. Independent of TensorRT and of plans."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Protocol

import torch

Enqueue = Callable[[int], None]
"""Puts work on the CUDA stream of this handle."""


class Streams(Protocol):
    """What a runner needs of a device."""

    def capturing(self) -> int | None:
        """Return the handle of the current stream if someone is capturing it in a graph; else None."""
        ...

    def run(self, enqueue: Enqueue) -> None:
        """Enqueue on a stream that is not the default one, after the current stream's work and before its next."""
        ...

    def allows(self, question: Callable[[int], bool]) -> bool:
        """Return the answer to a question about the stream that `capture` captures."""
        ...

    def capture(self, enqueue: Enqueue) -> Callable[[], None]:
        """Capture what is enqueued in a graph. Returns what replays it on the current stream."""
        ...


class CudaStreams:
    """The streams of a CUDA device. TensorRT waits for the whole device on the default one, so that is avoided."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capturing(self) -> int | None:
        """See `Streams`."""
        if not torch.cuda.is_current_stream_capturing():
            return None
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def run(self, enqueue: Enqueue) -> None:
        """See `Streams`."""
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            enqueue(int(current.cuda_stream))
            return
        with self._ordered(current):
            enqueue(int(self._own.cuda_stream))

    def allows(self, question: Callable[[int], bool]) -> bool:
        """See `Streams`."""
        return question(int(self._own.cuda_stream))

    def capture(self, enqueue: Enqueue) -> Callable[[], None]:
        """See `Streams`."""
        graph = torch.cuda.CUDAGraph()
        with (
            self._ordered(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, stream=self._own, capture_error_mode="thread_local"),
        ):
            enqueue(int(self._own.cuda_stream))
        return graph.replay

    @contextmanager
    def _ordered(self, current: torch.cuda.Stream) -> Iterator[None]:
        self._own.wait_stream(current)
        yield
        current.wait_stream(self._own)


class Action(Enum):
    """What to do in a call."""

    RUN = "run"
    CAPTURE = "capture"
    REPLAY = "replay"


class GraphChoice:
    """When a call is captured in a graph: the second time that it has the same addresses.

    The first run compiles and allocates. A graph holds for one set of addresses; callers with static buffers have few
    sets. Where the sets do not recur, capturing would cost more than it gives: after `most` sets without one that
    recurred, nothing is captured any more.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._seen: dict[Hashable, bool] = {}  # addresses -> whether there is a graph
        self._misses = 0

    def choose(self, addresses: Hashable) -> Action:
        """Return what to do in a call with these addresses."""
        captured = self._seen.get(addresses)
        if captured is None:
            self._misses += 1
            if self._misses <= self._most and len(self._seen) < 4 * self._most:
                self._seen[addresses] = False
            return Action.RUN
        self._misses = 0
        self._seen[addresses] = True
        return Action.REPLAY if captured else Action.CAPTURE

    def forget(self) -> None:
        """The weights have changed: capture all anew."""
        for addresses in self._seen:
            self._seen[addresses] = False
