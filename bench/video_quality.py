"""Measures long streams second by second: sharpness, saturation, colour drift, motion, flicker, recognition.

Frames come in pieces, in temporal order, and are not kept: memory does not grow with the length of a stream.
Independent of generators and bars. Formulas, for pictures in 0..1 (Y: Rec. 601 luma):
  sharpness    255 * mean over pixels of |(dY/dx, dY/dy)|, central differences
  saturation   mean over pixels of max(R, G, B) - min(R, G, B)
  histogram    shares of 8 x 8 x 8 colour bins; drift: half the sum of absolute differences to seconds 2 to 5
  degree       dynamic degree: mean flow magnitude in px per frame, without the largest 1 % of pixels
  flicker      warp error: mean |frame - next frame warped back by the flow|, in levels of 255
Each is a mean over a second's frames; degree and flicker over the transitions into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.flow import slopes
from bench.motion import Transitions, transitions
from train.classifier import Classifier, predict

FRAME_RATE = 16
HISTOGRAM_LEVELS = 8
REFERENCE_S = (2, 5)
"""The seconds that later ones are compared with (half-open)."""


class PictureFigures(NamedTuple):
    """Figures of N pictures: sharpness and saturation [N], histogram [N, 512]."""

    sharpness: Tensor
    saturation: Tensor
    histogram: Tensor


def picture_figures(pictures: Tensor) -> PictureFigures:
    """Figures of pictures [N, 3, H, W] in 0..1."""
    luma = (pictures * pictures.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    x, y = slopes(luma)
    return PictureFigures(
        sharpness=255 * (x.square() + y.square()).sqrt().mean((1, 2, 3)),
        saturation=(pictures.amax(1) - pictures.amin(1)).mean((1, 2)),
        histogram=colour_histogram(pictures),
    )


def colour_histogram(pictures: Tensor) -> Tensor:
    """Shares of the colour bins, [N, 512] float32, of pictures [N, 3, H, W] in 0..1."""
    level = (pictures * HISTOGRAM_LEVELS).long().clamp(0, HISTOGRAM_LEVELS - 1)
    box = ((level[:, 0] * HISTOGRAM_LEVELS + level[:, 1]) * HISTOGRAM_LEVELS + level[:, 2]).flatten(1)
    counts = torch.zeros(box.shape[0], HISTOGRAM_LEVELS**3, device=pictures.device)
    counts.scatter_add_(1, box, torch.ones_like(box, dtype=counts.dtype))
    return counts / box.shape[1]


def histogram_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the sum of absolute differences of shares [..., K]: 0 for equal ones, 1 if no colour is shared."""
    return (a - b).abs().sum(-1) / 2


def classify(judge: Classifier, pictures: Tensor, side_px: int = 192) -> Tensor:
    """Class indices int64 [N, 3] (subject + 1, place + 1, style) of pictures [N, 3, H, W] in 0..1, resized to the
    judge's side.
    """
    size = (side_px, side_px)
    resized = functional.interpolate(pictures, size, mode="bilinear", align_corners=False)
    return predict(judge, resized)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamFigures:
    """N streams of S whole seconds, on the CPU. sharpness, saturation, degree, flicker: [N, S]; histogram: [N, S, 512];
    classes: int64 [N, S, 3], the judge's classes of the middle frame of each second, or None without a judge;
    motion: Transitions [N, frames - 1, k].
    """

    sharpness: Tensor
    saturation: Tensor
    histogram: Tensor
    degree: Tensor
    flicker: Tensor
    classes: Tensor | None
    motion: Transitions

    @property
    def seconds(self) -> int:
        """Number of whole seconds."""
        return self.sharpness.shape[1]

    @staticmethod
    def concatenate(parts: Sequence[StreamFigures]) -> StreamFigures:
        """Concatenate streams that were measured separately."""
        classes = [part.classes for part in parts if part.classes is not None]
        return StreamFigures(
            sharpness=torch.cat([part.sharpness for part in parts]),
            saturation=torch.cat([part.saturation for part in parts]),
            histogram=torch.cat([part.histogram for part in parts]),
            degree=torch.cat([part.degree for part in parts]),
            flicker=torch.cat([part.flicker for part in parts]),
            classes=torch.cat(classes) if classes else None,
            motion=Transitions(*(torch.cat(fields) for fields in zip(*(part.motion for part in parts), strict=True))),
        )

    def window(self, start_s: float, stop_s: float) -> Transitions:
        """The transitions between the frames of a time span."""
        first, last = round(start_s * FRAME_RATE), round(stop_s * FRAME_RATE) - 1
        return Transitions(*(part[:, first:last] for part in self.motion))

    def histogram_drift(self) -> Tensor:
        """Distance of each second's colours to those of seconds 2 to 5: [N, S]. Raises ValueError below 3 seconds."""
        if self.seconds <= REFERENCE_S[0]:
            raise ValueError(f"a stream of {self.seconds} s has no seconds 2 to 5 to compare with: give at least 3 s")
        reference = self.histogram[:, slice(*REFERENCE_S)].mean(1, keepdim=True)
        return histogram_distance(self.histogram, reference)


class StreamMeter:
    """Measures streams in lockstep, piece by piece. judge: None skips recognition. shrink: factor before flow."""

    def __init__(self, judge: Classifier | None = None, *, side_px: int = 192, shrink: int = 2) -> None:
        self._judge, self._side_px, self._shrink = judge, side_px, shrink
        self._last: Tensor | None = None
        self._frames = 0
        self._pictures: list[PictureFigures] = []
        self._motion: list[Transitions] = []
        self._classes: list[Tensor] = []

    @torch.no_grad()
    def add(self, frames: Tensor) -> None:
        """Add the next frames, uint8 [N, F, H, W, 3], on any device; they are not kept."""
        first, streams = self._frames, frames.shape[0]
        pixels = frames.permute(0, 1, 4, 2, 3).float() / 255
        figures = picture_figures(pixels.flatten(0, 1))
        self._pictures.append(PictureFigures(*(f.view(streams, -1, *f.shape[1:]).cpu() for f in figures)))
        with_last = pixels if self._last is None else torch.cat([self._last, pixels], 1)
        if with_last.shape[1] > 1:
            self._motion.append(Transitions(*(t.cpu() for t in transitions(with_last, shrink=self._shrink))))
        self._last = pixels[:, -1:].clone()
        self._frames += frames.shape[1]
        middle = FRAME_RATE // 2
        for index in range(first, self._frames):
            if self._judge is not None and index % FRAME_RATE == middle:
                self._classes.append(classify(self._judge, pixels[:, index - first], self._side_px).cpu())

    def figures(self) -> StreamFigures:
        """Figures of all whole seconds. Raises ValueError if there is none."""
        seconds = self._frames // FRAME_RATE
        if not seconds:
            raise ValueError(f"{self._frames} frames at {FRAME_RATE} a second are less than a second: give more")
        motion = Transitions.joined(self._motion)
        pictures = PictureFigures(*(torch.cat(parts, 1) for parts in zip(*self._pictures, strict=True)))

        def by_second(values: Tensor) -> Tensor:
            whole = values[:, : seconds * FRAME_RATE]
            return whole.reshape(whole.shape[0], seconds, FRAME_RATE, *whole.shape[2:]).mean(2)

        def into_frames(values: Tensor) -> Tensor:
            return torch.cat([values[:, :1], values], 1)[..., 0]

        return StreamFigures(
            sharpness=by_second(pictures.sharpness),
            saturation=by_second(pictures.saturation),
            histogram=by_second(pictures.histogram),
            degree=by_second(into_frames(motion.degree)),
            flicker=by_second(into_frames(motion.flicker)),
            classes=torch.stack(self._classes[:seconds], 1) if self._judge is not None else None,
            motion=motion,
        )


def measure_stream(
    pieces: Iterable[Tensor], judge: Classifier | None = None, *, side_px: int = 192, shrink: int = 2
) -> StreamFigures:
    """Figures of pieces uint8 [N, F, H, W, 3] in temporal order."""
    meter = StreamMeter(judge, side_px=side_px, shrink=shrink)
    for piece in pieces:
        meter.add(piece)
    return meter.figures()
