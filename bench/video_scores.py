"""Owns the scores of streams: curves over time, recognition rates, and bars with whether they are met.

Depends on the streams' specs and figures only, not on models or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.motion_judge import MIN_FRAMES, MotionJudge
from bench.video_quality import FRAME_RATE, REFERENCE_S, StreamFigures
from train.clips.motions import ClipSpec

SPAN_S = 5
"""Length of the start and end spans that are compared."""
HEADS = ("subject", "place", "style")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bound: minimum <= value <= maximum."""

    name: str
    value: float
    minimum: float = float("-inf")
    maximum: float = float("inf")

    @property
    def met(self) -> bool:
        """False for NaN."""
        return self.minimum <= self.value <= self.maximum

    def record(self) -> dict[str, Any]:
        """For JSON, with finite bounds only."""
        bounds = {name: v for name, v in (("least", self.minimum), ("most", self.maximum)) if abs(v) != float("inf")}
        return {"value": round(self.value, 4), **bounds, "met": self.met}


def truth_of(spec: ClipSpec) -> Tensor:
    """Class indices int64 [N, 3] of specs, as the picture classifier gives them."""
    return torch.stack([spec.subject + 1, spec.place + 1, spec.style], 1).cpu()


def curves(figures: StreamFigures, spec: ClipSpec) -> dict[str, list[float]]:
    """Each figure second by second, mean over the streams; recognition as shares of the streams."""
    lines = {
        "sharpness": figures.sharpness,
        "saturation": figures.saturation,
        "degree": figures.degree,
        "flicker": figures.flicker,
    }
    if figures.seconds > REFERENCE_S[0]:
        lines["histogram_drift"] = figures.histogram_drift()
    if figures.classes is not None:
        right = (figures.classes == truth_of(spec)[:, None]).double()
        lines |= {head: right[..., i] for i, head in enumerate(HEADS)}
    return {name: [round(v, 5) for v in values.mean(0).tolist()] for name, values in lines.items()}


def motion_shares(
    figures: StreamFigures, spec: ClipSpec, judge: MotionJudge, spans: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Share of streams whose motion is recognised in each span of seconds. Spans under 2.5 s are omitted."""
    named = {
        name: judge.name(figures.window(*span))
        for name, span in spans.items()
        if (span[1] - span[0]) * FRAME_RATE >= MIN_FRAMES
    }
    return {name: float((motion == spec.motion.cpu()).double().mean()) for name, motion in named.items()}


def spans_of(seconds: int) -> dict[str, tuple[int, int]]:
    """The first and the last five seconds (a shorter stream: all of it)."""
    span = min(SPAN_S, seconds)
    return {"start": (0, span), "end": (seconds - span, seconds)}


def motion_spans(seconds: int) -> dict[str, tuple[int, int]]:
    """As `spans_of`, plus five seconds from 10, 20, 30 and 45 s on, for the curve of recognised motions."""
    between = {f"at_{at}": (at, at + SPAN_S) for at in (10, 20, 30, 45) if at + SPAN_S <= seconds}
    return {**spans_of(seconds), **between}


def mean_of(curve: list[float], span: tuple[int, int]) -> float:
    """Mean of a curve over a span of seconds."""
    part = curve[span[0] : span[1]]
    return sum(part) / max(len(part), 1)


def summary(figures: StreamFigures, spec: ClipSpec, judge: MotionJudge) -> dict[str, Any]:
    """Curves and motions, and their means at the start, in seconds 2 to 5, and at the end."""
    lines = curves(figures, spec)
    spans = spans_of(figures.seconds)
    motions = motion_shares(figures, spec, judge, motion_spans(figures.seconds))
    means = {
        name: {**{key: round(mean_of(line, span), 4) for key, line in lines.items()}, "motion": motions.get(name)}
        for name, span in spans.items()
    }
    reference = {key: round(mean_of(line, REFERENCE_S), 4) for key, line in lines.items()}
    return {**means, "seconds_2_to_5": reference, "motions": motions, "curves": lines}


def bars(scores: Mapping[str, Any]) -> list[Bar]:
    """The bars of mini-video for the scores of `summary`."""
    start, reference, end = scores["start"], scores["seconds_2_to_5"], scores["end"]
    minimum = {"subject": 0.70, "place": 0.90, "motion": 0.80}

    def number(part: Mapping[str, Any], name: str) -> float:
        value = part.get(name)
        return float("nan") if value is None else float(value)

    result = [Bar(name=f"{name}_0_to_5_s", value=number(start, name), minimum=bound) for name, bound in minimum.items()]
    result += [
        Bar(name=f"{name}_lost_at_the_end", value=number(start, name) - number(end, name), maximum=0.10)
        for name in minimum
    ]
    result.append(Bar(name="degree_kept", value=_ratio(end["degree"], start["degree"]), minimum=0.70))
    for name in ("sharpness", "saturation"):
        result.append(Bar(name=f"{name}_kept", value=_ratio(end[name], reference[name]), minimum=0.75, maximum=1.25))
    return result


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
