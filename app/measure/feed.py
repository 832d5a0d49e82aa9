"""Feeds one stream of an engine in the order of the live worker, and notes when its frames arrive.

The worker admits what is due, runs a tick if anything is in flight, and pulls (app/worker/process.py). Here the newest
picture of a camera is always due, or the next chunk as soon as the stream is idle; frames are not paced, so that the
engine's own speed shows. Independent of what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipelines.core.contracts import Engine, Stream
from pipelines.core.types import Frame


@dataclass(frozen=True, slots=True)
class Arrival:
    """Frames that one `pull` returned. at_ns: monotonic. latencies_ms: of each, from its push or request."""

    at_ns: int
    frames: int
    latencies_ms: tuple[float, ...]


class Feed(Protocol):
    """One stream and its input."""

    @property
    def stream(self) -> Stream: ...

    def admit(self) -> None:
        """Push or request what is due."""
        ...

    def collect(self) -> Arrival | None:
        """Pull; None if nothing is finished."""
        ...


class CameraFeed:
    """Pushes the newest picture; one that finds no free slot is replaced by a newer one, as in the worker's mailbox."""

    def __init__(self, stream: Stream, camera: Iterator[Frame]) -> None:
        self.stream, self._camera = stream, camera

    def admit(self) -> None:
        """Offer the newest picture."""
        self.stream.push(next(self._camera))

    def collect(self) -> Arrival | None:
        """Pull; latency is counted from the push."""
        frames = self.stream.pull()
        if not frames:
            return None
        now_ns = time.monotonic_ns()
        captured = [frame.captured_ns for frame in frames if frame.captured_ns is not None]
        return Arrival(now_ns, len(frames), tuple((now_ns - at_ns) / 1e6 for at_ns in captured))


class PromptFeed:
    """Requests a chunk from the prompt alone whenever the stream is idle."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._requested_ns = time.monotonic_ns()

    def admit(self) -> None:
        """Request the next chunk if nothing is in flight."""
        if not self.stream.busy:
            self._requested_ns = time.monotonic_ns()
            self.stream.generate(self.stream.info.frames_per_chunk)

    def collect(self) -> Arrival | None:
        """Pull; latency is counted from the request, the same for all frames of the chunk."""
        frames = self.stream.pull()
        if not frames:
            return None
        now_ns = time.monotonic_ns()
        return Arrival(now_ns, len(frames), ((now_ns - self._requested_ns) / 1e6,))


def turn(engine: Engine, feeds: list[Feed]) -> list[Arrival | None]:
    """Do one round of the worker's loop. Returns what arrived, feed by feed."""
    for feed in feeds:
        feed.admit()
    if any(feed.stream.busy for feed in feeds):
        engine.tick()
    return [feed.collect() for feed in feeds]
