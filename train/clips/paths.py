"""Owns where camera and subject of a clip are at every frame: start, motion and actions added up within their bounds.

The world is a picture without an end sideways (painted once and mirrored), of which the frame at zoom 1 shows VIEW.
The subject stands on the screen, is followed by the camera and grows with the zoom. Knows no colours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES
from train.world import SPRITE_MARGIN_PX

from .actions import SPEED, ZOOM_SPEED, bounded_sum, frame_actions
from .motions import MotionCurves

VIEW = 0.78
"""Share of the painted side that the frame shows at zoom 1."""
LOG_ZOOM = (math.log(0.8), math.log(1.25))
SUBJECT_SIDE = (0.48, 0.58)
"""Of the subject at zoom 1, in frame sides."""
BORDER = 0.02
"""What a subject pushed to its bound keeps from the frame's border, in frame sides."""
MIN_ROOM = 0.03
"""How far a subject can always be pushed from the middle, however large it is."""
WANDERED_IDLE, WANDERED_ACTIVE = 0.03, 0.08
"""Shares of the clips without and with actions that begin where earlier actions may have led: anywhere, at any zoom."""


class ClipPaths(NamedTuple):
    """Each [B, F], lengths in frame sides. camera_x, camera_y: of the frame's middle, right and up from the middle of
    the painting, at zoom 1. x, y: middle of the sprite's square on the screen from the top left, y down; side: of that
    square; angle: clockwise, radians. ground_x, foot: the point of the ground that the subject stands on, on the
    screen; lift: how far it is above it.
    """

    camera_x: Tensor
    camera_y: Tensor
    log_zoom: Tensor
    x: Tensor
    y: Tensor
    side: Tensor
    angle: Tensor
    ground_x: Tensor
    foot: Tensor
    lift: Tensor


class Start(NamedTuple):
    """Frame 0 without motion, each [B, 1], lengths in frame sides at zoom 1. x, y: the subject right and up from the
    middle, before it is kept within its bounds; camera_y likewise. visible: height of the subject.
    """

    camera_x: Tensor
    camera_y: Tensor
    log_zoom: Tensor
    x: Tensor
    y: Tensor
    visible: Tensor
    tilt: Tensor


def sample_start(actions: Tensor, generator: torch.Generator) -> Start:
    """Where clips with actions [B, L, 5] begin: mostly in the middle at zoom 1."""
    n, device = actions.shape[0], actions.device
    u = torch.rand(8, n, 1, generator=generator, device=device)
    signed = u * 2 - 1
    active = actions.flatten(1).any(1, keepdim=True)
    wandered = u[0] < torch.where(active, WANDERED_ACTIVE, WANDERED_IDLE)
    return Start(
        camera_x=torch.where(wandered, signed[1] / VIEW, 0.06 * signed[1]),
        camera_y=torch.where(wandered, 0.2 * signed[2], 0.02 * signed[2]),
        log_zoom=torch.where(wandered, LOG_ZOOM[1] * signed[3], torch.zeros_like(signed[3])),
        x=torch.where(wandered, 0.3 * signed[4], 0.04 * signed[4]),
        y=torch.where(wandered, 0.3 * signed[5], 0.03 * signed[5] - 0.03),
        visible=SUBJECT_SIDE[0] + (SUBJECT_SIDE[1] - SUBJECT_SIDE[0]) * u[6],
        tilt=math.radians(4) * signed[7],
    )


def _steps(curve: Tensor) -> Tensor:
    """Differences between frames of [B, F], 0 at frame 0."""
    return torch.cat([torch.zeros_like(curve[:, :1]), curve.diff(dim=1)], 1)


def camera_height_bound(log_zoom: Tensor) -> Tensor:
    """How far the camera can go up or down so that the painting still fills the frame, in frame sides."""
    return ((1 / VIEW - torch.exp(-log_zoom)) / 2).clamp(min=0)


def trace_paths(start: Start, curves: MotionCurves, actions: Tensor, foot: Tensor, sprite_px: int) -> ClipPaths:
    """Add up start, motion and actions [B, L, 5].

    foot: [B, 1] by how much the subject's lowest point is below the middle of its square, in sides. sprite_px: side of
    the sprite's square, whose margin does not count as the subject.
    """
    move = dict(zip(ACTION_NAMES, frame_actions(actions).unbind(-1), strict=True))
    bottom, top = (torch.full_like(move["push_x"], bound) for bound in LOG_ZOOM)
    swing = curves.channel("zoom")
    log_zoom = bounded_sum(start.log_zoom + swing[:, :1], _steps(swing) + ZOOM_SPEED * move["camera_zoom"], bottom, top)
    zoom = log_zoom.exp()
    # Speeds hold on the screen, so they are divided by the zoom.
    across = (_steps(curves.channel("camera_x")) + SPEED * move["camera_x"]) / zoom
    up, bound = curves.channel("camera_y"), camera_height_bound(log_zoom)
    camera_y = bounded_sum(start.camera_y + up[:, :1], (_steps(up) + SPEED * move["camera_y"]) / zoom, -bound, bound)
    growth = curves.channel("growth")
    # The room that the motion itself needs is kept free on its side.
    room = (0.5 - BORDER) / zoom - start.visible / 2 * curves.limit("growth").exp()
    side_room = (room - curves.limit("x")).clamp(min=MIN_ROOM)
    down_room = (room - curves.limit("y")).clamp(min=MIN_ROOM)
    up_room = (room - curves.limit("y") - curves.limit("hop")).clamp(min=MIN_ROOM - curves.limit("hop") / 2)
    standing_x = bounded_sum(start.x, SPEED * move["push_x"] / zoom, -side_room, side_room) + curves.channel("x")
    standing_y = bounded_sum(
        start.y - curves.limit("hop") / 2, SPEED * move["push_y"] / zoom, -down_room, up_room
    ) + curves.channel("y")
    side = start.visible * sprite_px / (sprite_px - 2 * SPRITE_MARGIN_PX) * zoom
    lift, lean, leg = zoom * curves.channel("hop"), curves.channel("lean"), foot * side
    ground_x, ground_y = 0.5 + zoom * standing_x, 0.5 - zoom * standing_y + leg
    grown = growth.exp()
    return ClipPaths(
        camera_x=start.camera_x + across.cumsum(1),
        camera_y=camera_y,
        log_zoom=log_zoom,
        x=ground_x + leg * grown * lean.sin(),
        y=ground_y - lift - leg * grown * lean.cos(),
        side=side * grown,
        angle=start.tilt + curves.channel("turn") + lean,
        ground_x=ground_x,
        foot=ground_y,
        lift=lift,
    )
