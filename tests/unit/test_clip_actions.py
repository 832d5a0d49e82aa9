"""Actions and their effect: which frames they move, in which direction, how fast and how far."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.conditioning.actions import ACTION_NAMES
from train.clips.actions import (
    MAX_ACTION,
    REACH,
    SPEED,
    ZOOM_SPEED,
    bounded_sum,
    frame_actions,
    frame_count,
    sample_actions,
    within_reach,
)
from train.clips.motions import MOTIONS, motion_curves
from train.clips.paths import (
    LOG_ZOOM,
    VIEW,
    WANDERED_ACTIVE,
    WANDERED_IDLE,
    ClipPaths,
    Start,
    camera_height_bound,
    sample_start,
    trace_paths,
)

CPU = torch.device("cpu")
LATENTS = 12
FRAMES = frame_count(LATENTS)


def paths_of(actions: torch.Tensor, motion: int = 0, start: Start | None = None) -> ClipPaths:
    """Return paths of clips with a 160 px sprite whose foot is just above the 4 px margin of its square."""
    n = actions.shape[0]
    generator = torch.Generator().manual_seed(2)
    curves = motion_curves(torch.full((n,), motion), frame_count(actions.shape[1]), generator)
    return trace_paths(start or middle(n), curves, actions, torch.full((n, 1), 0.475), 160)


def middle(n: int) -> Start:
    zero = torch.zeros(n, 1)
    return Start(camera_x=zero, camera_y=zero, log_zoom=zero, x=zero, y=zero, visible=zero + 0.5, tilt=zero)


def pressed(**values: float) -> torch.Tensor:
    """Return one clip's actions [1, L, 5], held from the start."""
    return torch.tensor([values.get(name, 0.0) for name in ACTION_NAMES]).expand(1, LATENTS, -1)


def test_the_names_and_their_order_are_fixed() -> None:
    assert ACTION_NAMES == ("camera_x", "camera_y", "camera_zoom", "push_x", "push_y")


def test_a_latents_action_moves_its_four_frames_only() -> None:
    actions = torch.eye(LATENTS).unsqueeze(-1).expand(-1, -1, 5)
    assert frame_actions(actions).shape == (LATENTS, FRAMES, 5)
    for k in range(LATENTS):
        moved = paths_of(actions[k : k + 1]).camera_x.diff(dim=1)[0].nonzero().flatten() + 1
        assert moved.tolist() == ([] if k == 0 else list(range(4 * k - 3, 4 * k + 1)))


def test_directions_and_speeds() -> None:
    frames = 4
    for name, path, speed in (
        ("camera_x", "camera_x", SPEED), ("camera_y", "camera_y", SPEED), ("camera_zoom", "log_zoom", ZOOM_SPEED),
        ("push_x", "x", SPEED), ("push_y", "y", -SPEED),
    ):  # fmt: skip
        for amount in (1.0, -0.5):
            still, paths = paths_of(pressed()), paths_of(pressed(**{name: amount}))
            gone = {field: getattr(paths, field) - getattr(still, field) for field in ClipPaths._fields}
            assert float(gone[path][0, frames]) == pytest.approx(amount * speed * frames, rel=1e-3)
            follows = {"push_x": {"ground_x"}, "push_y": {"foot"}, "camera_zoom": {"side", "foot", "y", "x"}}
            for field in set(ClipPaths._fields) - {path} - follows.get(name, set()):
                assert float(gone[field].abs().max()) < 1e-6, (name, field)


def test_zooming_takes_the_subject_along_about_the_middle() -> None:
    start = middle(1)._replace(x=torch.full((1, 1), 0.1))
    paths = paths_of(pressed(camera_zoom=0.5), start=start)
    torch.testing.assert_close(paths.x - 0.5, 0.1 * paths.log_zoom.exp(), atol=1e-6, rtol=0)
    torch.testing.assert_close(paths.side, paths.side[:, :1] * paths.log_zoom.exp())


def test_speeds_hold_on_the_screen_at_any_zoom() -> None:
    zoomed = middle(1)._replace(log_zoom=torch.full((1, 1), LOG_ZOOM[1]))
    paths = paths_of(pressed(camera_x=1, push_x=-1), start=zoomed)
    on_screen = paths.camera_x.diff(dim=1) * 1.25
    torch.testing.assert_close(on_screen, torch.full_like(on_screen, SPEED), atol=1e-6, rtol=0)
    assert float(paths.x[0, 4] - paths.x[0, 0]) == pytest.approx(-4 * SPEED, rel=1e-3)


@pytest.mark.parametrize("motion", range(len(MOTIONS)))
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_bounds_hold(motion: int, sign: float) -> None:
    actions = sign * torch.ones(8, 24, 5)
    actions[4:, :, 2] *= -1
    paths = paths_of(actions, motion, sample_start(actions, torch.Generator().manual_seed(4)))
    assert float(paths.log_zoom.min()) >= LOG_ZOOM[0] - 1e-6
    assert float(paths.log_zoom.max()) <= LOG_ZOOM[1] + 1e-6
    half_view = torch.exp(-paths.log_zoom) / 2
    assert bool((paths.camera_y.abs() <= camera_height_bound(paths.log_zoom) + 1e-6).all())
    assert bool((paths.camera_y.abs() + half_view <= 0.5 / VIEW + 1e-5).all())
    for centre in (paths.x, paths.y):
        assert bool(((centre - 0.5).abs() < 0.40).all())
    if motion == 0:
        inside = paths.log_zoom < 0.1
        visible = paths.side * 152 / 160 / 2
        assert bool(((paths.x - 0.5).abs() + visible <= 0.5)[inside].all())
        assert bool(((paths.y - 0.5).abs() + visible <= 0.5)[inside].all())


def test_no_action_adds_no_motion() -> None:
    paths = paths_of(torch.zeros(1, LATENTS, 5))
    for path in paths:
        assert bool((path == path[:, :1]).all())


def test_motion_and_action_add_up() -> None:
    pan = paths_of(pressed(), 8).camera_x + paths_of(pressed(camera_x=-0.7)).camera_x
    torch.testing.assert_close(paths_of(pressed(camera_x=-0.7), 8).camera_x, pan)
    sway = paths_of(pressed(), 2).x + paths_of(pressed(push_x=0.1)).x - 0.5
    torch.testing.assert_close(paths_of(pressed(push_x=0.1), 2).x, sway)


def test_a_bouncing_subject_leaves_the_ground_and_a_rocking_one_does_not() -> None:
    bouncing, rocking = paths_of(pressed(), 1), paths_of(pressed(), 4)
    assert bool((bouncing.foot == bouncing.foot[:, :1]).all())
    torch.testing.assert_close(bouncing.foot - bouncing.y, 0.475 * bouncing.side + bouncing.lift)
    assert float(bouncing.lift.min()) >= 0
    leg = torch.stack([rocking.x - rocking.ground_x, rocking.foot - rocking.y]).norm(dim=0)
    torch.testing.assert_close(leg, 0.475 * rocking.side)
    torch.testing.assert_close(torch.atan2(rocking.x - rocking.ground_x, rocking.foot - rocking.y), rocking.angle)


def test_bounded_sum_is_a_clamped_walk() -> None:
    generator = torch.Generator().manual_seed(6)
    steps = torch.randn(5, 33, generator=generator)
    low, high = -torch.rand(5, 33, generator=generator) * 2, torch.rand(5, 33, generator=generator) * 2
    start = torch.randn(5, 1, generator=generator) * 3
    x, expected = start[:, 0], []
    for t in range(33):
        x = (x + steps[:, t]).clamp(low[:, t], high[:, t])
        expected.append(x)
    torch.testing.assert_close(bounded_sum(start, steps, low, high), torch.stack(expected, 1))


def test_sampled_actions_are_held_commands_on_one_or_two_axes() -> None:
    actions = sample_actions(400, 12, torch.Generator().manual_seed(7), CPU)
    assert actions.shape == (400, 12, 5)
    assert 1.3 < float(actions.abs().max()) <= MAX_ACTION
    assert 0.25 < float((actions == 0).flatten(1).all(1).double().mean()) < 0.40
    assert int((actions != 0).sum(-1).max()) == 2
    assert set((actions != 0).any(1).sum(0).clamp(max=1).tolist()) == {1}
    changes = (actions.abs().diff(dim=1) != 0).any(-1)
    assert not bool((changes[:, 1:] & changes[:, :-1]).any()), "a command is held for two latents at least"
    assert 0.05 < float(changes.double().mean()) < 0.2
    assert torch.equal(actions, sample_actions(400, 12, torch.Generator().manual_seed(7), CPU))


def test_commands_stay_within_reach_and_only_sideways_the_camera_goes_on() -> None:
    actions = sample_actions(400, 24, torch.Generator().manual_seed(9), CPU)
    farthest = actions.cumsum(1).abs().amax(1)
    inside = (farthest[:, 1:] <= torch.tensor(REACH[1:]) + 1e-4).all(1)
    assert 0.9 < float(inside.double().mean()) < 1
    assert float(farthest[:, 0].max()) > 10


def test_a_command_that_would_leave_turns_back_as_fast() -> None:
    up = torch.zeros(1, 9, 5)
    up[..., 1] = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 0.5, 0.5])
    kept = within_reach(up, torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1]]))
    assert kept[0, :, 1].tolist() == [1, 1, -1, -1, -1, -1, 1, 0.5, 0.5]
    far = torch.zeros(1, 8, 5)
    far[..., 0] = 1.0
    assert torch.equal(within_reach(far, torch.zeros(1, 8, dtype=torch.int64)), far)


def test_full_speed_is_as_frequent_on_axes_with_a_bound() -> None:
    actions = sample_actions(2000, 24, torch.Generator().manual_seed(4), CPU)
    full = (actions.abs() >= 1).double().mean((0, 1))
    assert float(full.min()) > 0.8 * float(full.max())


def test_starts_are_in_the_middle_unless_actions_led_away() -> None:
    idle = sample_start(torch.zeros(400, 3, 5), torch.Generator().manual_seed(8))
    active = sample_start(torch.ones(400, 3, 5), torch.Generator().manual_seed(8))
    away = [float((start.log_zoom != 0).double().mean()) for start in (idle, active)]
    assert away == pytest.approx([WANDERED_IDLE, WANDERED_ACTIVE], abs=0.04)
    assert 0 < away[0] < away[1]
    assert math.isclose(LOG_ZOOM[0], -LOG_ZOOM[1])
