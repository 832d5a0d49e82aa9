"""Owns the two figures of bench.cache_clips: a person who walks up and down, drawn from capsules, and a talking head, a
photograph whose mouth, eyelids and head move.

Both leave the ground around them exactly as it is. Pictures as in bench.cache_pictures. Independent of cameras and
noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from bench.cache_pictures import Levels, Size, centred, covering, photo

Point: TypeAlias = tuple[float, float]
Plane: TypeAlias = npt.NDArray[np.float32]

SKIN, HAIR, SHIRT, TROUSERS, SHOES = (
    (214, 160, 128), (52, 36, 28), (190, 58, 48), (46, 58, 96), (30, 26, 26),
)  # fmt: skip
STEP_FRAMES, TURN_FRAMES = 18, 120
"""Frames of two steps, and of a walk there and back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limb:
    """A capsule from a to b, in figure heights from the middle of the feet, y upwards; colour in levels."""

    a: Point
    b: Point
    radius: float
    colour: tuple[int, int, int]


def walker_limbs(frame: int) -> list[Limb]:
    """The parts of the person from back to front, facing right: an arm and a leg of each side swing against each
    other.
    """
    phase = 2 * math.pi * frame / STEP_FRAMES
    bob = 0.012 * math.cos(2 * phase)
    hip, shoulder, head = (0.0, 0.47 + bob), (0.01, 0.77 + bob), (0.025, 0.91 + bob)
    limbs: list[Limb] = []

    def leg(swing: float) -> None:
        thigh = 0.42 * swing
        knee = (hip[0] + 0.23 * math.sin(thigh), hip[1] - 0.23 * math.cos(thigh))
        shin = thigh - 0.35 - 0.30 * math.sin(phase) * math.copysign(1, swing) * abs(swing)
        ankle = (knee[0] + 0.22 * math.sin(shin), max(0.03, knee[1] - 0.22 * math.cos(shin)))
        limbs.append(Limb(a=hip, b=knee, radius=0.050, colour=TROUSERS))
        limbs.append(Limb(a=knee, b=ankle, radius=0.038, colour=TROUSERS))
        limbs.append(Limb(a=ankle, b=(ankle[0] + 0.06, ankle[1] - 0.005), radius=0.028, colour=SHOES))

    def arm(swing: float) -> None:
        upper = 0.55 * swing
        elbow = (shoulder[0] + 0.16 * math.sin(upper), shoulder[1] - 0.16 * math.cos(upper))
        hand = (elbow[0] + 0.15 * math.sin(upper + 0.45), elbow[1] - 0.15 * math.cos(upper + 0.45))
        limbs.append(Limb(a=shoulder, b=elbow, radius=0.032, colour=SHIRT))
        limbs.append(Limb(a=elbow, b=hand, radius=0.024, colour=SKIN))

    swing = math.sin(phase)
    arm(swing)
    leg(-swing)
    leg(swing)
    limbs.append(Limb(a=hip, b=shoulder, radius=0.078, colour=SHIRT))
    limbs.append(Limb(a=(0.015, 0.80 + bob), b=head, radius=0.030, colour=SKIN))
    limbs.append(Limb(a=(head[0] - 0.012, head[1] + 0.022), b=(head[0] - 0.03, head[1]), radius=0.066, colour=HAIR))
    limbs.append(Limb(a=head, b=(head[0] + 0.012, head[1] - 0.02), radius=0.058, colour=SKIN))
    arm(-swing)
    return limbs


def walk(frame: int, start_frame: int = 0) -> tuple[float, float]:
    """(x of the feet in picture widths, 1 facing right or -1) of a frame: there and back, slowing down at the ends."""
    turn = 2 * math.pi * (frame + start_frame) / TURN_FRAMES
    return 0.5 + 0.30 * math.sin(turn), math.copysign(1.0, math.cos(turn))


def draw_walker(ground: Levels, frame: int, start_frame: int = 0, *, tall: float = 0.62) -> Levels:
    """The ground with the person on it. tall: height in picture heights. Edges are anti-aliased."""
    height, width = ground.shape[:2]
    x, facing = walk(frame, start_frame)
    scale, feet = tall * height, (x * width, 0.93 * height)
    reach = 0.55 * scale
    left, right = max(0, math.floor(feet[0] - reach)), min(width, math.ceil(feet[0] + reach))
    picture = ground.copy()
    part = picture[:, left:right]
    across = (np.arange(left, right, dtype=np.float32) + 0.5 - feet[0])[None, :] * facing
    up = (feet[1] - np.arange(height, dtype=np.float32) - 0.5)[:, None]
    shadow = 0.45 * (1 - np.hypot(across / (0.22 * scale), up / (0.035 * scale))).clip(0, 1)
    part *= 1 - shadow[..., None]
    for limb in walker_limbs(frame):
        depth = _capsule_depth(across, up, limb, scale)
        cover = (depth + 0.5).clip(0, 1)[..., None]
        # Darker towards the edges, as something round is; stripes run around a shirt.
        shade = 0.55 + 0.45 * (depth / (limb.radius * scale)).clip(0, 1)
        if limb.colour == SHIRT:
            shade = shade * (1 - 0.25 * (np.sin(up / (0.006 * scale)) > 0))
        part += cover * (np.array(limb.colour, np.float32) * shade[..., None].astype(np.float32) - part)
    return picture


def _capsule_depth(across: Plane, up: Plane, limb: Limb, scale: float) -> Plane:
    """Distance inside a capsule's edge in px, negative outside."""
    (ax, ay), (bx, by) = ((scale * x, scale * y) for x, y in (limb.a, limb.b))
    ux, uy = bx - ax, by - ay
    along = (((across - ax) * ux + (up - ay) * uy) / (ux * ux + uy * uy + 1e-6)).clip(0, 1)
    distance = np.hypot(across - ax - along * ux, up - ay - along * uy)
    return np.asarray(limb.radius * scale - distance, dtype=np.float32)


# -- talking head ------------------------------------------------------------------------------------------------------

PORTRAIT, PORTRAIT_PX = 23, 256
"""The photograph of Grace Hopper. All lengths below are in its pixels."""
HEAD, MOUTH, EYES = (132.0, 78.0), (133.0, 117.0), ((111.0, 70.0), (152.0, 70.0))
BLINK_FRAMES, BLINK_EVERY = 5, 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """What a face does in one frame, in px of the portrait. sway: the head's motion right and down. jaw: how far the
    mouth is open. lids: how far the eyelids are down.
    """

    sway: Point
    jaw: float
    lids: float


def expression(frame: int, start_frame: int = 0) -> Expression:
    """Speech in phrases of two seconds with pauses, about four syllables a second at 24 frames; a blink every three
    seconds.
    """
    t = frame + start_frame
    speaking = min(1.0, max(0.0, 1.6 * math.sin(2 * math.pi * t / 96) + 0.6))
    syllable = 0.5 - 0.5 * math.cos(2 * math.pi * t / 6.2 + 0.7 * math.sin(t / 5))
    into_blink = t % BLINK_EVERY
    closed = math.sin(math.pi * (into_blink + 1) / (BLINK_FRAMES + 1)) if into_blink < BLINK_FRAMES else 0.0
    sway = (2.2 * math.sin(2 * math.pi * t / 83), 1.2 * math.sin(2 * math.pi * t / 57))
    return Expression(sway=sway, jaw=6.0 * speaking * syllable, lids=6.0 * closed)


def draw_talking_head(size: Size, face: Expression) -> Levels:
    """The portrait at that size with that expression."""
    picture = covering(photo(PORTRAIT), size)
    height, width = picture.shape[:2]
    scale = width / PORTRAIT_PX
    x = ((np.arange(width, dtype=np.float32) + 0.5) / scale)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / scale)[:, None]
    head = _bump(x, y, HEAD, (62.0, 84.0), power=4)
    move_x = face.sway[0] * head
    move_y = face.sway[1] * head + face.jaw * _bump(x, y, (MOUTH[0], MOUTH[1] + 12), (22.0, 13.0))
    for eye in EYES:
        move_y = move_y + face.lids * _bump(x, y, eye, (13.0, 8.0))
    map_x, map_y = ((x - move_x) * scale - 0.5).astype(np.float32), ((y - move_y) * scale - 0.5).astype(np.float32)
    moved = cv2.remap(picture, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).clip(0, 255)
    _open_mouth(moved, x - face.sway[0], y - face.sway[1], face.jaw)
    # What does not move is left exactly as it is.
    still = (np.abs(move_x) + np.abs(move_y) < 1e-3)[..., None]
    return centred_crop(np.where(still, picture, moved).astype(np.float32), size)


def centred_crop(picture: Levels, size: Size) -> Levels:
    """The middle of the picture."""
    left, top = (picture.shape[1] - size[0]) // 2, (picture.shape[0] - size[1]) // 2
    return np.ascontiguousarray(picture[top : top + size[1], left : left + size[0]])


def _bump(x: Plane, y: Plane, centre: Sequence[float], radius: Point, power: int = 2) -> Plane:
    """1 at the centre, e^-1 at the radius, exactly 0 far outside; flat in the middle if the power is high."""
    away = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    bump = np.exp(-(away ** (power / 2)))
    return np.asarray(np.where(bump < 1e-3, 0, bump), dtype=np.float32)


def _open_mouth(picture: Levels, x: Plane, y: Plane, jaw: float) -> None:
    """Paint the dark between the lips, in place."""
    if jaw < 0.3:
        return
    half = jaw * 0.42
    away = np.hypot((x - MOUTH[0]) / 13.0, (y - MOUTH[1] - half) / half)
    cover = ((1 - away) * half + 0.5).clip(0, 1)[..., None]
    picture += cover * (np.array((58, 22, 20), np.float32) - picture)


def still_portrait(size: Size) -> Levels:
    """The portrait at rest."""
    return centred(photo(PORTRAIT), size)
