"""Owns the motion judge: which of the eleven motions a clip shows, and how far camera and subject have moved.

A linear model over a few features of a window's Transitions; its weights are in motion_judge.json next to this file,
fitted on rendered clips by bench.fit_motion. Independent of generators and prompts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.flow import DEFAULT_FLOW, FlowSettings
from bench.motion import Transitions, transitions

MOTION_NAMES = (
    "still", "bouncing", "side to side", "spinning", "rocking", "growing and shrinking", "in circles",
    "panning left", "panning right", "zooming in and out", "tilting up and down",
)  # fmt: skip
"""In the order of their indices in train.clips."""
MIN_FRAMES = 40
"""2.5 seconds at 16 frames a second: shorter clips may not show a full period."""
WEIGHTS = Path(__file__).parent / "motion_judge.json"

_SERIES = ("camera_x", "camera_y", "camera_zoom", "subject_x", "subject_y", "subject_size", "subject_turn")
FEATURES = (
    *(f"log_rms_{name}" for name in _SERIES),
    *(f"log_drift_{name}" for name in _SERIES),
    *(f"one_way_{name}" for name in _SERIES),
    *(f"share_{name}" for name in _SERIES),
    "direction_camera_x", "circularity", "turn_per_x", "bounce", "sameness_of_zooms", "log_degree",
)  # fmt: skip
"""The columns of `features`."""
_PX_OF_ZOOM, _PX_OF_TURN, _FLOOR_PX, _MAX_PX = 40.0, 30.0, 0.05, 12.0


def series(window: Transitions) -> Tensor:
    """The seven time series [B, T, 7] in pixels per frame, smoothed over three frames.

    A magnification is converted to the motion 40 px from the centre, a turn to the motion 30 px from it.
    """
    scale = torch.tensor([1, 1, _PX_OF_ZOOM, 1, 1, _PX_OF_ZOOM, _PX_OF_TURN], device=window.background.device)
    raw = (torch.cat([window.background, window.subject], -1) * scale).clamp(-_MAX_PX, _MAX_PX)
    smooth = functional.avg_pool1d(
        functional.pad(raw.transpose(1, 2), (2, 2), mode="replicate"), kernel_size=5, stride=1
    )
    return smooth.transpose(1, 2)


def features(window: Transitions) -> Tensor:
    """[B, len(FEATURES)] of transitions [B, T, k]. Raises ValueError if T < MIN_FRAMES - 1."""
    if window.degree.shape[1] < MIN_FRAMES - 1:
        raise ValueError(
            f"motion is judged over at least {MIN_FRAMES} frames, got {window.degree.shape[1] + 1}: give more"
        )
    values = series(window)
    rms, mean, size = values.square().mean(1).sqrt(), values.mean(1), values.abs().mean(1)
    one_way = mean / (size + _FLOOR_PX)
    subject = values[..., 3:5]
    place = (subject - subject.mean(1, keepdim=True)).cumsum(1)
    place = place - place.mean(1, keepdim=True)
    swept = (place[..., 0] * subject[..., 1] - place[..., 1] * subject[..., 0]).sum(1).abs()
    circle = swept / ((place.norm(dim=-1) * subject.norm(dim=-1)).sum(1) + 1)
    jerk = (subject[:, 3:, 1] - subject[:, :-3, 1]).amax(1) + (subject[:, 3:, 1] - subject[:, :-3, 1]).amin(1)
    others = [
        one_way[:, 0],
        circle,
        (values[..., 3] * values[..., 6]).sum(1)
        / (values[..., 3].square().sum(1) + window.degree.shape[1] * _FLOOR_PX**2),
        jerk / (size[:, 4] + 0.3),
        _correlation(values[..., 2], values[..., 5]),
        (_FLOOR_PX + window.degree[..., 0].mean(1)).log(),
    ]
    share = rms / (rms.sum(1, keepdim=True) + 2 * _FLOOR_PX)
    logs = (_FLOOR_PX + torch.cat([rms, mean.abs()], 1)).log()
    return torch.cat([logs, one_way.abs(), share, torch.stack(others, 1)], 1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation about 0 of series [B, T], shrunk towards 0 if they hardly move: [B]."""
    floor = a.shape[1] * _FLOOR_PX**2
    return (a * b).sum(1) / ((a.square().sum(1) + floor) * (b.square().sum(1) + floor)).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MotionJudge:
    """logits = weight ((features - mean) / scale) + bias. mean, scale: [K]; weight: [11, K]; bias: [11]; float32."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, window: Transitions) -> Tensor:
        """[B, 11] of transitions [B, T, k]."""
        return self.of_features(features(window))

    def of_features(self, measured: Tensor) -> Tensor:
        """[B, 11] of features [B, K]."""
        mean, scale, weight, bias = (t.to(measured) for t in (self.mean, self.scale, self.weight, self.bias))
        return ((measured - mean) / scale) @ weight.T + bias

    def name(self, window: Transitions) -> Tensor:
        """Indices of motions int64 [B]."""
        return self.logits(window).argmax(1)


def load_motion_judge(file: Path = WEIGHTS) -> MotionJudge:
    """The judge written by bench.fit_motion. Raises ValueError if it was fitted for other features."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    if tuple(stored["features"]) != FEATURES or tuple(stored["motions"]) != MOTION_NAMES:
        raise ValueError(f"{file} was fitted for other features or motions; run python -m bench.fit_motion")
    return MotionJudge(**{name: torch.tensor(stored[name]) for name in ("mean", "scale", "weight", "bias")})


class Displacements(NamedTuple):
    """Per transition of clips, each [B, F - 1, k].

    camera: (x, y, log zoom), the camera's motion right and up in pixels of the frame, opposite to the background's.
    subject: (x, y), right and up in pixels on the screen.
    """

    camera: Tensor
    subject: Tensor


def displacements(frames: Tensor, settings: FlowSettings = DEFAULT_FLOW) -> Displacements:
    """How far camera and subject move from frame to frame of clips [B, F, 3, H, W] in 0..1 or uint8."""
    return displacements_of(transitions(frames, settings, exact=True))


def displacements_of(window: Transitions) -> Displacements:
    """As `displacements`, from Transitions: the background moves left when the camera moves right; y points up."""
    x, y, zoom = window.background.unbind(-1)
    return Displacements(
        camera=torch.stack([-x, y, zoom], -1),
        subject=window.subject[..., :2] * torch.tensor([1.0, -1.0], device=window.subject.device),
    )
