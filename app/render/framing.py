"""How the pictures of a render are fitted into the engine's size, and the engine's into the output's.

Independent of engines and files.
"""

from __future__ import annotations

from collections import deque

from app.media.geometry import Aspect, Placement, Size, even, output_placement
from app.media.source import SourceInfo
from pipelines.core.errors import InputError
from pipelines.core.types import Frame, Picture

from .request import OutSize


class Framing:
    """Placements of the pictures of one render. A source's size may change on the way: each picture that comes out is
    placed by the size of the one that went in."""

    def __init__(self, native: Size, source: SourceInfo | None, aspect: Aspect) -> None:
        """native: the engine's size. source: None for prompt-only."""
        self._native = native
        self._source = source
        self._aspect = aspect
        self._output = native
        self._in_size: Size | None = None
        self._into: Placement | None = None
        self._back: deque[tuple[int, Placement]] = deque()  # from which frame on, newest last

    def choose_output(self, wanted: OutSize, *, even_sides: bool) -> Size:
        """The size to write, which `finished` then gives. Raises InputError for "source" without one."""
        first = self._placement(self._source.size) if self._source is not None else None
        if wanted == "native":
            size = self._native
        elif wanted == "source":
            if self._source is None or first is None:
                raise InputError("--out-size source was given without an input.", "Give native or WxH.")
            size = (max(1, round(first.taken.width * self._source.pixel_aspect)), first.taken.height)
        else:
            assert not isinstance(wanted, str)
            size = wanted
        self._output = even(size) if even_sides else size
        self._back.clear()
        self._back.append((0, self._to_output(first)))
        return self._output

    def placed(self, index: int, image: Picture) -> Picture:
        """Picture `index` of the source at the engine's size. Indices increase."""
        size = (image.shape[1], image.shape[0])
        if self._into is None or size != self._in_size:
            self._into, self._in_size = self._placement(size), size
            self._back.append((index, self._to_output(self._into)))
        return self._into.apply(image)

    def finished(self, frame: Frame) -> Picture:
        """The engine's picture at the size to write, without the bars that its input got. Frames come in order."""
        while frame.source_seq is not None and len(self._back) > 1 and self._back[1][0] <= frame.source_seq:
            self._back.popleft()
        return self._back[0][1].apply(frame.image)

    def _placement(self, size: Size) -> Placement:
        pixel_aspect = self._source.pixel_aspect if self._source is not None else 1.0
        return Placement.plan(size, self._native, self._aspect, pixel_aspect)

    def _to_output(self, source: Placement | None) -> Placement:
        return output_placement(self._native, source, self._output, self._aspect)
