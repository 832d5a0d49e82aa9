"""Writes frames to an animated GIF with one palette for the whole clip.

The palette needs all frames, so they are kept as PNG in the scratch folder until the file is made: at the end, and when
a render is stopped. Sound is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from .containers import Animation
from .open_media import file_url
from .picture_writer import PictureWriter
from .writer import Left, writing

_FRAMES = "frames"
_TIMES = "times.txt"
_PALETTE = "stats_mode=full:reserve_transparent=0"
_DITHER = "dither=sierra2_4a"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnimationPlan:
    """The file to make. size: (width, height) in pixels. time_base: of pts and durations, seconds.

    resumable: whether --resume can go on from the frames that are kept.
    """

    kind: Animation
    size: tuple[int, int]
    time_base: Fraction
    resumable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A picture and when it appears, in the file's ticks."""

    picture: Path
    tick: int


class AnimationWriter:
    """output: the file. scratch: an existing folder on the same file system, for the frames."""

    def __init__(self, output: Path, scratch: Path, plan: AnimationPlan, *, keep: bool) -> None:
        """keep: continue after the frames in `scratch`."""
        self._output, self._scratch, self._plan = output, scratch, plan
        self._remarks: list[str] = []
        self._pictures = PictureWriter(frames_folder(scratch), resume=keep, resumable=plan.resumable)
        file = scratch / _TIMES
        with writing(output, self._left):
            lines = file.read_text(encoding="ascii").splitlines() if keep and file.is_file() else []
            times = [tuple(map(int, line.split())) for line in lines[: self._pictures.frames]]
            assert len(times) == self._pictures.frames, "the time of a frame is written before its picture"
            self._times = [(pts, duration) for pts, duration in times]
            file.write_text("".join(f"{pts} {duration}\n" for pts, duration in self._times), encoding="ascii")

    @property
    def frames(self) -> int:
        return self._pictures.frames

    def remarks(self) -> list[str]:
        """Whether frames were left out."""
        said, self._remarks = self._remarks, []
        return said

    def write(self, image: npt.NDArray[np.uint8], pts: int, duration: int) -> None:
        """Keep one picture of the plan's size."""
        with writing(self._output, self._left), (self._scratch / _TIMES).open("a", encoding="ascii") as file:
            file.write(f"{pts} {duration}\n")
        self._times.append((pts, duration))
        self._pictures.write(image, pts, duration)

    def finish(self, *, complete: bool) -> None:
        """Make the file."""
        self._make()

    def suspend(self) -> None:
        """Make the file of the frames so far; they stay."""
        if self.frames:
            self._make()

    def abandon(self) -> None:
        """Does nothing: the frames are complete."""

    def _left(self) -> Left:
        return Left.stored(self._pictures.frames, resumable=self._plan.resumable)

    def _make(self) -> None:
        shown, end = self._shown()
        final = self._scratch / "final.gif"
        try:
            with writing(self._output, self._left):
                _encode(final, shown, end, self._plan)
                final.replace(self._output)
        except BaseException:  # including an interrupt: clean up and re-raise
            with suppress(OSError):
                final.unlink(missing_ok=True)
            raise
        if left_out := self.frames - len(shown):
            rate = float(self._plan.kind.max_frame_rate)
            self._remarks.append(
                f"A GIF shows at most {rate:g} frames a second: {left_out} of {self.frames} frames are left out, and "
                "the speed is kept."
            )

    def _shown(self) -> tuple[list[_Shown], int]:
        """The pictures that the file's times have room for, and the tick at which the last one ends."""
        kind, scale = self._plan.kind, self._plan.time_base / self._plan.kind.tick_s
        start = self._times[0][0]
        shown: list[_Shown] = []
        for index, (pts, _) in enumerate(self._times):
            tick = round((pts - start) * scale)
            if not shown or tick - shown[-1].tick >= kind.shortest_ticks:
                shown.append(_Shown(picture=self._pictures.file(index), tick=tick))
        end = round((sum(self._times[-1]) - start) * scale)
        return shown, max(end, shown[-1].tick + kind.shortest_ticks)


def frames_folder(scratch: Path) -> Path:
    """The folder with the frames of an unfinished file."""
    return scratch / _FRAMES


def _encode(file: Path, shown: Sequence[_Shown], end: int, plan: AnimationPlan) -> None:
    """Write all pictures in two passes: the first counts their colours."""
    palette = _palette(shown, plan)
    options = {"loop": "0", "final_delay": str(end - shown[-1].tick)}
    with av.open(file_url(file), "w", format=plan.kind.muxer, options=options) as container:
        stream = container.add_stream(plan.kind.encoder, rate=plan.kind.max_frame_rate)
        stream.width, stream.height = plan.size
        stream.pix_fmt = "pal8"
        stream.codec_context.time_base = plan.kind.tick_s
        for frame in _mapped(shown, palette, plan):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _palette(shown: Sequence[_Shown], plan: AnimationPlan) -> av.VideoFrame:
    graph = av.filter.Graph()
    source, sink = _source(graph, plan, plan.size), graph.add("buffersink")
    counted = graph.add("palettegen", _PALETTE)
    source.link_to(counted)
    counted.link_to(sink)
    graph.configure()
    for frame in _frames(shown, plan):
        source.push(frame)
    source.push(None)
    palette = sink.pull()
    assert isinstance(palette, av.VideoFrame)
    return palette


def _mapped(shown: Sequence[_Shown], palette: av.VideoFrame, plan: AnimationPlan) -> Iterator[av.VideoFrame]:
    graph = av.filter.Graph()
    source, sink = _source(graph, plan, plan.size), graph.add("buffersink")
    colours = _source(graph, plan, (palette.width, palette.height), palette.format.name)
    mapped = graph.add("paletteuse", _DITHER)
    source.link_to(mapped, 0, 0)
    colours.link_to(mapped, 0, 1)
    mapped.link_to(sink)
    graph.configure()
    palette.pts, palette.time_base = 0, plan.kind.tick_s
    colours.push(palette)
    colours.push(None)
    for frame in chain(_frames(shown, plan), [None]):
        source.push(frame)
        yield from _pulled(sink)


def _pulled(sink: av.filter.context.FilterContext) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame


def _source(
    graph: av.filter.Graph, plan: AnimationPlan, size: tuple[int, int], pixels: str = "rgb24"
) -> av.filter.context.FilterContext:
    return graph.add_buffer(width=size[0], height=size[1], format=pixels, time_base=plan.kind.tick_s)


def _frames(shown: Sequence[_Shown], plan: AnimationPlan) -> Iterator[av.VideoFrame]:
    for item in shown:
        image = cv2.imread(str(item.picture), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise OSError(f"{item.picture} cannot be read back")
        frame = av.VideoFrame.from_ndarray(np.asarray(image, np.uint8), format="rgb24")
        frame.pts, frame.time_base = item.tick, plan.kind.tick_s
        yield frame
