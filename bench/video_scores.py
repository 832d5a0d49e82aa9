"""Owns what figures of streams amount to: curves over time, shares that are recognised, bars and whether they are met.

Knows what streams should show (their specs) and the bars of mini-video; no model and no picture.
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
"""Of the beginning and of the end that are compared."""
HEADS = ("subject", "place", "style")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bound: least <= value <= most."""

    name: str
    value: float
    minimum: float = float("-inf")
    maximum: float = float("inf")

    @property
    def met(self) -> bool:
        """Never for a value that is no number."""
        return self.minimum <= self.value <= self.maximum

    def record(self) -> dict[str, Any]:
        """For JSON: only the bounds that there are."""
        bounds = {name: v for name, v in (("least", self.minimum), ("most", self.maximum)) if abs(v) != float("inf")}
        return {"value": round(self.value, 4), **bounds, "met": self.met}


def truth_of(spec: ClipSpec) -> Tensor:
    """Class indices int64 [N, 3] of specs, as the judge of pictures gives them."""
    return torch.stack([spec.subject + 1, spec.place + 1, spec.style], 1).cpu()


def curves(figures: StreamFigures, spec: ClipSpec) -> dict[str, list[float]]:
    """Each figure second by second, mean over the streams; recognition as shares of the streams."""
    found = {
        "sharpness": figures.sharpness,
        "saturation": figures.saturation,
        "degree": figures.degree,
        "flicker": figures.flicker,
    }
    if figures.seconds > REFERENCE_S[0]:
        found["histogram_drift"] = figures.histogram_drift()
    if figures.classes is not None:
        right = (figures.classes == truth_of(spec)[:, None]).double()
        found |= {head: right[..., i] for i, head in enumerate(HEADS)}
    return {name: [round(v, 5) for v in values.mean(0).tolist()] for name, values in found.items()}


def motion_shares(
    figures: StreamFigures, spec: ClipSpec, judge: MotionJudge, spans: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Share of streams whose motion is named right in each span of seconds. Spans under 2.5 s are left out."""
    named = {
        name: judge.name(figures.window(*span))
        for name, span in spans.items()
        if (span[1] - span[0]) * FRAME_RATE >= MIN_FRAMES
    }
    return {name: float((found == spec.motion.cpu()).double().mean()) for name, found in named.items()}


def spans_of(seconds: int) -> dict[str, tuple[int, int]]:
    """The first and the last five seconds (all of a shorter stream)."""
    span = min(SPAN_S, seconds)
    return {"start": (0, span), "end": (seconds - span, seconds)}


def motion_spans(seconds: int) -> dict[str, tuple[int, int]]:
    """As `spans_of`, and five seconds from 10, 20, 30 and 45 on, for the curve of recognised motions."""
    between = {f"at_{at}": (at, at + SPAN_S) for at in (10, 20, 30, 45) if at + SPAN_S <= seconds}
    return {**spans_of(seconds), **between}


def mean_of(curve: list[float], span: tuple[int, int]) -> float:
    """Mean of a curve's seconds."""
    part = curve[span[0] : span[1]]
    return sum(part) / max(len(part), 1)


def summary(figures: StreamFigures, spec: ClipSpec, judge: MotionJudge) -> dict[str, Any]:
    """Curves, motions, and the same at the start, in seconds 2 to 5, and at the end."""
    lines = curves(figures, spec)
    spans = spans_of(figures.seconds)
    motions = motion_shares(figures, spec, judge, motion_spans(figures.seconds))
    told = {
        name: {**{key: round(mean_of(line, span), 4) for key, line in lines.items()}, "motion": motions.get(name)}
        for name, span in spans.items()
    }
    reference = {key: round(mean_of(line, REFERENCE_S), 4) for key, line in lines.items()}
    return {**told, "seconds_2_to_5": reference, "motions": motions, "curves": lines}


def bars(told: Mapping[str, Any]) -> list[Bar]:
    """The bars of mini-video for what `summary` told."""
    start, reference, end = told["start"], told["seconds_2_to_5"], told["end"]
    minimum = {"subject": 0.70, "place": 0.90, "motion": 0.80}

    def known(part: Mapping[str, Any], name: str) -> float:
        value = part.get(name)
        return float("nan") if value is None else float(value)

    found = [Bar(name=f"{name}_0_to_5_s", value=known(start, name), minimum=bound) for name, bound in minimum.items()]
    found += [
        Bar(name=f"{name}_lost_at_the_end", value=known(start, name) - known(end, name), maximum=0.10)
        for name in minimum
    ]
    found.append(Bar(name="degree_kept", value=_ratio(end["degree"], start["degree"]), minimum=0.70))
    for name in ("sharpness", "saturation"):
        found.append(Bar(name=f"{name}_kept", value=_ratio(end[name], reference[name]), minimum=0.75, maximum=1.25))
    return found


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
