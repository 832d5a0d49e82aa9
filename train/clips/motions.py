"""Owns the motions a clip can show: their words, their curves over time, and which combinations are sampled.

A motion is a row of one table: waves and amplitudes for some of the movable channels. Independent of pictures and
actions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from train.vocabulary import SUBJECTS
from train.vocabulary_world import Term
from train.world import sample_specs

FRAMES_PER_SECOND = 16
FRAMES_PER_LATENT = 4
"""Pixel frames per latent frame; the first latent frame is one pixel frame."""
PERIOD_S = (1.2, 3.0)
TURN_PERIOD_S = (2.0, 3.0)
"""Minimum period of full turns; faster ones would move a subject's outline by ten pixels per frame."""
STILL_SHARE = 0.12
"""Share of clips without motion of their own; the other motions are equally likely, apart from their emphasis."""
PAN_SPEED = (1.1 / 128, 1.3 / 128)
"""Of a panning camera, in frame widths per pixel frame: about 0.8 of an action's full speed."""

CHANNELS = ("x", "y", "hop", "turn", "lean", "growth", "camera_x", "camera_y", "zoom")
"""The movable channels. x, y: the subject, right and up, on the ground. hop: upwards, off the ground. turn and lean:
clockwise about the centre and about the foot, in radians. growth and zoom: logs of factors. camera_x, camera_y: the
camera, right and up. Lengths are in frame sides.
"""


class ClipSpec(NamedTuple):
    """A batch of combinations, each field int64 [B]: subject and place -1 mean none; light 0 is day, style 0 is plain,
    motion 0 is still.
    """

    subject: Tensor
    place: Tensor
    light: Tensor
    style: Tensor
    motion: Tensor


Wave = Callable[[Tensor, Tensor], Tensor]
"""A curve over (theta, frame): the phase in radians, [B, F], and the frame index, [1, F]."""


def sine(theta: Tensor, frame: Tensor) -> Tensor:
    """Back and forth."""
    return theta.sin()


def cosine(theta: Tensor, frame: Tensor) -> Tensor:
    """A quarter of a period ahead of sine."""
    return theta.cos()


def arc(theta: Tensor, frame: Tensor) -> Tensor:
    """One jump per period, |sin|."""
    return (theta / 2).sin().abs()


def turn(theta: Tensor, frame: Tensor) -> Tensor:
    """A full turn per period."""
    return theta


def steady(theta: Tensor, frame: Tensor) -> Tensor:
    """One per frame, in the same direction in every clip."""
    return frame.expand_as(theta)


WAVES: tuple[Wave, ...] = (sine, cosine, arc, turn, steady)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One channel of a motion: a wave times an amplitude drawn between low and high."""

    channel: str
    wave: Wave
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.channel not in CHANNELS or self.wave not in WAVES:
            raise ValueError(f"channel {self.channel!r} must be one of {CHANNELS} and its wave one of WAVES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """One motion. needs_subject: the subject moves, so its phrases follow the noun ("bouncing"); otherwise they are
    placed between commas, like its labels. period_s: minimum and maximum. emphasis: relative sampling weight in
    training.
    """

    term: Term
    needs_subject: bool
    parts: tuple[Part, ...] = ()
    period_s: tuple[float, float] = PERIOD_S
    emphasis: float = 1.0


def _subject_motion(
    phrases: tuple[str, ...],
    labels: tuple[str, ...],
    *parts: Part,
    period_s: tuple[float, float] = PERIOD_S,
    emphasis: float = 1.0,
) -> Motion:
    term = Term(name=phrases[0], phrases=phrases, labels=labels)
    return Motion(term=term, needs_subject=True, parts=parts, period_s=period_s, emphasis=emphasis)


def _camera_motion(labels: tuple[str, ...], phrases: tuple[str, ...], *parts: Part, emphasis: float = 1.0) -> Motion:
    term = Term(name=labels[0], phrases=phrases, labels=labels)
    return Motion(term=term, needs_subject=False, parts=parts, emphasis=emphasis)


MOTIONS: tuple[Motion, ...] = (
    _camera_motion(("still",), ("standing still", "nothing moves")),
    _subject_motion(
        ("bouncing", "bouncing up and down", "jumping up and down"),
        ("bouncing", "jumping"),
        Part(channel="hop", wave=arc, low=0.12, high=0.17),
    ),
    _subject_motion(
        ("moving from side to side", "moving left and right"),
        ("from side to side", "left and right"),
        Part(channel="x", wave=sine, low=0.09, high=0.13),
    ),
    _subject_motion(
        ("spinning", "spinning around", "turning around and around"),
        ("spinning", "turning"),
        Part(channel="turn", wave=turn, low=1.0, high=1.0),
        period_s=TURN_PERIOD_S,
        emphasis=2.5,
    ),
    _subject_motion(
        ("rocking", "rocking to and fro", "wobbling"),
        ("rocking", "wobbling"),
        Part(channel="lean", wave=sine, low=math.radians(12), high=math.radians(18)),
        emphasis=2.5,
    ),
    _subject_motion(
        ("growing and shrinking", "getting bigger and smaller"),
        ("growing and shrinking", "bigger and smaller"),
        Part(channel="growth", wave=sine, low=0.15, high=0.19),
    ),
    _subject_motion(
        ("moving in circles", "going in circles"),
        ("in circles", "circling"),
        Part(channel="x", wave=cosine, low=0.08, high=0.11),
        Part(channel="y", wave=sine, low=0.08, high=0.11),
    ),
    _camera_motion(
        ("panning left", "pan left"),
        ("the camera pans left", "the camera moves left"),
        Part(channel="camera_x", wave=steady, low=-PAN_SPEED[0], high=-PAN_SPEED[1]),
    ),
    _camera_motion(
        ("panning right", "pan right"),
        ("the camera pans right", "the camera moves right"),
        Part(channel="camera_x", wave=steady, low=PAN_SPEED[0], high=PAN_SPEED[1]),
    ),
    _camera_motion(
        ("zooming in and out", "zoom in and out"),
        ("the camera zooms in and out",),
        Part(channel="zoom", wave=sine, low=0.14, high=0.19),
        emphasis=1.5,
    ),
    _camera_motion(
        ("tilting up and down", "tilt up and down"),
        ("the camera tilts up and down", "the camera moves up and down"),
        Part(channel="camera_y", wave=sine, low=0.085, high=0.115),
    ),
)
"""In the order of a spec's motion."""


class MotionCurves(NamedTuple):
    """The motions of B clips without actions: value [B, F, channels] over time, and reach [B, channels], the maximum
    deflection of a channel by an oscillating wave.
    """

    value: Tensor
    reach: Tensor

    def channel(self, name: str) -> Tensor:
        """One channel over time, [B, F]."""
        return self.value[..., CHANNELS.index(name)]

    def limit(self, name: str) -> Tensor:
        """One channel's reach, [B, 1]."""
        return self.reach[:, CHANNELS.index(name), None]


@functools.cache
def _amplitudes() -> Tensor:
    """Minimum and maximum amplitude, [2, motions, channels, waves]."""
    table = torch.zeros(2, len(MOTIONS), len(CHANNELS), len(WAVES))
    for row, motion in enumerate(MOTIONS):
        for part in motion.parts:
            place = (row, CHANNELS.index(part.channel), WAVES.index(part.wave))
            table[0][place], table[1][place] = part.low, part.high
    return table


def motion_curves(motion: Tensor, frames: int, generator: torch.Generator, *, any_phase: bool = False) -> MotionCurves:
    """Curves of motion [B] (int64 index into MOTIONS) with random amplitude and period (1.2 to 3 s). They start at the
    beginning of a period, so that the first frame of a clip shows the subject at rest, and all in the same direction:
    to the right, up, in, bigger, clockwise. A few-step model cannot decide what a caption leaves open. any_phase: start
    anywhere in the period.
    """
    n, device = motion.shape[0], motion.device
    u = torch.rand(3, n, 1, generator=generator, device=device)
    frame = torch.arange(frames, device=device, dtype=torch.float32).view(1, -1)
    shortest, longest = torch.tensor([m.period_s for m in MOTIONS], device=device)[motion].unsqueeze(-1).unbind(1)
    period_s = shortest + (longest - shortest) * u[0]
    theta = 2 * math.pi * (frame / (period_s * FRAMES_PER_SECOND) + (u[2] if any_phase else 0))
    waves = torch.stack([wave(theta, frame) for wave in WAVES], -1)
    low, high = _amplitudes().to(device).index_select(1, motion).unbind(0)
    amplitude = low + (high - low) * u[1].unsqueeze(-1)
    swinging = amplitude[..., : WAVES.index(turn)].abs().sum(-1)
    return MotionCurves(torch.einsum("bfw,bcw->bfc", waves, amplitude), swinging)


def sample_clip_specs(
    n: int,
    generator: torch.Generator,
    device: torch.device,
    held_out: bool | None,
    *,
    subjects: int = len(SUBJECTS),
    emphasised: bool = False,
) -> ClipSpec:
    """Draw n combinations on `device` (the generator's); subject, place, light and style as train.world.sample_specs
    does, which also decides what is held out. A clip without a subject is still or has a camera motion. emphasised:
    sample motions that are hard to learn more often.
    """
    scene = sample_specs(n, generator, device, held_out, subjects=subjects)
    weights = [motion.emphasis if emphasised else 1.0 for motion in MOTIONS[1:]]
    free = [0.0 if motion.needs_subject else weight for motion, weight in zip(MOTIONS[1:], weights, strict=True)]
    shares = torch.tensor([free, weights], device=device)
    shares = shares / shares.sum(1, keepdim=True) * (1 - STILL_SHARE)
    shares = torch.cat([torch.full((2, 1), STILL_SHARE, device=device), shares], 1)
    rows = shares.index_select(0, (scene.subject >= 0).long())
    motion = torch.multinomial(rows, 1, replacement=True, generator=generator).flatten()
    return ClipSpec(*scene, motion=motion)
