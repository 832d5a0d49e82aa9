"""Makes whole pictures of interlaced ones, whose two fields show different moments. Independent of files and colours.

FFmpeg's bwdif: a picture for every frame, at the same rate. Frames that are not flagged as interlaced pass unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.filter import Graph

_Shape = tuple[int, int, str]


def whole_pictures(frames: Iterable[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """`frames`, with times in `time_base`, but with the interlaced ones made whole; those name their own time base.

    From the first interlaced frame on, frames come one later: the method looks at the neighbours. An error of `frames`
    is raised once all frames before it were yielded.
    """
    graph: Graph | None = None
    shape: _Shape | None = None
    try:
        for frame in frames:
            if graph is not None and _shape(frame) != shape:
                yield from _drained(graph)
                graph = None
            if graph is None and frame.interlaced_frame:
                graph, shape = _graph(frame, time_base), _shape(frame)
            if graph is None:
                yield frame
                continue
            graph.vpush(frame)
            yield from _ready(graph)
    except Exception:  # of any kind: raised again after the frame that waits in the filter
        if graph is not None:
            yield from _drained(graph)
        raise
    if graph is not None:
        yield from _drained(graph)


def _shape(frame: av.VideoFrame) -> _Shape:
    return frame.width, frame.height, frame.format.name


def _graph(frame: av.VideoFrame, time_base: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    method = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    graph.link_nodes(source, method, graph.add("buffersink")).configure()
    return graph


def _ready(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield frame


def _drained(graph: Graph) -> Iterator[av.VideoFrame]:
    graph.vpush(None)
    yield from _ready(graph)
