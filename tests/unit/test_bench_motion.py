"""bench.motion and bench.motion_judge: fits of known flow fields, the judge on known curves, and rendered clips."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.actions import axis_commands, by_latent, calibrated, compared, measured_of, passed, residual_px, scenes
from bench.fit_motion import degraded, fit, gather, shares_right
from bench.motion import Transitions, despeckled, fit_background, fit_subject, subject_region, transitions
from bench.motion_judge import FEATURES, MOTION_NAMES, WEIGHTS, displacements_of, features, load_motion_judge
from bench.world_clips import PACK, as_bytes, held_out_captions, load_sprites, motion_clips
from pipelines.conditioning.actions import ACTION_NAMES
from tests.fakes.sprites import made_up_pack
from train.clips.motions import MOTIONS
from train.clips.render import render_clips

SIDE = 64
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def sprites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with made_up_pack(tmp_path_factory.mktemp("pack")):
        yield


def _places() -> tuple[Tensor, Tensor]:
    line = torch.arange(SIDE) + 0.5 - SIDE / 2
    across, down = torch.meshgrid(line, line, indexing="xy")
    return across, down


def _scene_flow(camera: tuple[float, float, float], subject: tuple[float, float, float, float]) -> Tensor:
    """[1, 2, H, W]: a background (x, y, zoom - 1) and in front of it a disc of 15 px (x, y, growth, rotation)."""
    across, down = _places()
    x, y, zoom = camera
    flow = torch.stack([x + zoom * across, y + zoom * down])
    move_x, move_y, grow, turn = subject
    own = torch.stack([move_x + grow * across - turn * down, move_y + turn * across + grow * down])
    disc = across.square() + down.square() < 15**2
    return torch.where(disc, own, flow)[None]


def test_a_scene_is_taken_apart_into_camera_and_subject() -> None:
    flow = _scene_flow((-0.6, 0.2, 0.01), (1.5, -1.0, 0.03, 0.1))
    flow[:, :, :4, :20] += 5.0  # something else that moves in the border
    seen = torch.ones(1, 1, SIDE, SIDE)
    background = fit_background(flow, seen)
    assert background[0].tolist() == pytest.approx([-0.6, 0.2, math.log1p(0.01)], abs=0.02)
    subject = fit_subject(flow, *subject_region(flow, seen, background))
    assert subject[0].tolist() == pytest.approx([1.5, -1.0, 0.03, 0.1], abs=0.08)


def test_what_cannot_be_seen_stands_still() -> None:
    flow = torch.full((1, 2, SIDE, SIDE), 2.0)
    assert float(fit_background(flow, torch.full((1, 1, SIDE, SIDE), 1e-6)).abs().max()) < 0.02


def test_specks_go_and_edges_stay() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 8:] = 1
    specked = picture.clone()
    specked[0, 0, 4, 3], specked[0, 0, 9, 12] = 1, 0
    assert torch.equal(despeckled(specked), picture)


def _window(motion: int, count: int = 47, noise: float = 0.02) -> Transitions:
    """Return transitions [1, count, k] of one of the world's motions, at 128 px, with a period of two seconds."""
    t = torch.arange(count + 1, dtype=torch.float64)
    theta = 2 * math.pi * t / 32 + 0.4
    zero = torch.zeros_like(t)
    sine, cosine = theta.sin(), theta.cos()
    subject = {
        1: (zero, -18 * (theta / 2).sin().abs(), zero, zero),
        2: (14 * sine, zero, zero, zero),
        3: (zero, zero, zero, theta),
        4: (8 * sine, zero, zero, 0.26 * sine),
        5: (zero, -5 * sine, 0.17 * sine, zero),  # it stands on the ground
        6: (12 * cosine, 12 * sine, zero, zero),
        9: (zero, zero, 0.16 * sine, zero),
    }.get(motion, (zero, zero, zero, zero))
    camera = {
        7: (1.2 * t, zero, zero),
        8: (-1.2 * t, zero, zero),
        9: (zero, zero, 0.16 * sine),
        10: (zero, 13 * sine, zero),
    }.get(motion, (zero, zero, zero))
    generator = torch.Generator().manual_seed(motion)

    def steps(curves: tuple[Tensor, ...], scale: list[float]) -> Tensor:
        moved = torch.stack(curves, -1).diff(dim=0)[None].float()
        return moved + noise * torch.randn(moved.shape, generator=generator) * torch.tensor(scale)

    background, own = steps(camera, [1, 1, 0.02]), steps(subject, [1, 1, 0.02, 0.03])
    size = background[..., :2].norm(dim=-1) + 0.3 * own[..., :2].norm(dim=-1) + 12 * own[..., 2:].abs().sum(-1)
    return Transitions(background, own, size[..., None], torch.ones(1, count, 1))


@pytest.mark.parametrize("motion", range(len(MOTION_NAMES)))
def test_the_judge_names_every_motion_from_its_curve(motion: int) -> None:
    assert load_motion_judge().name(_window(motion)).tolist() == [motion]


def test_a_frozen_stream_is_still() -> None:
    frozen = transitions(torch.rand(1, 1, 3, 32, 32).expand(1, 41, 3, 32, 32))
    assert load_motion_judge().name(frozen).tolist() == [0]
    assert float(frozen.degree.max()) == 0


def test_the_judge_knows_the_worlds_motions_in_order() -> None:
    assert len(MOTION_NAMES) == len(MOTIONS)
    assert {motion.term.name: i for i, motion in enumerate(MOTIONS) if i in (7, 9)} == {
        "panning left": 7,
        "zooming in and out": 9,
    }


def test_too_short_a_window_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 40 frames"):
        features(_window(0, count=20))
    with pytest.raises(ValueError, match="has no transition"):
        transitions(torch.zeros(1, 1, 3, 32, 32))
    stored = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    other = tmp_path / "judge.json"
    other.write_text(json.dumps({**stored, "features": stored["features"][1:]}), encoding="utf-8")
    with pytest.raises(ValueError, match="fit_motion"):
        load_motion_judge(other)


def test_the_fit_finds_what_tells_motions_apart() -> None:
    windows = [_window(motion, noise=0.02 + 0.01 * copy) for motion in range(11) for copy in range(6)]
    truth = torch.arange(11).repeat_interleave(6)
    found = torch.cat([features(window) for window in windows])
    assert found.shape == (66, len(FEATURES))
    judge = fit(found, truth)
    assert shares_right(judge, windows, truth)["mean"] == 1
    assert torch.equal(judge.of_features(found), fit(found, truth).of_features(found))


def test_degraded_clips_are_worse_but_the_same_scene() -> None:
    clip = torch.rand(2, 1, 3, 32, 32).expand(2, 5, 3, 32, 32)
    worse = degraded(clip, torch.Generator().manual_seed(1))
    assert worse.shape == clip.shape
    assert 0.005 < float((worse - clip).abs().mean()) < 0.3
    assert float((worse[:, 1] - worse[:, 0]).abs().mean()) > 0.002


# -- actions -----------------------------------------------------------------------------------------------------------


def test_commands_turn_back_before_a_bound() -> None:
    commands = axis_commands(10, 34, torch.Generator().manual_seed(2))
    assert commands.shape == (10, 34, len(ACTION_NAMES))
    assert float(commands.cumsum(1).abs().max()) <= 4.0
    assert float(commands[:, :3].abs().max()) == 0
    active = commands.abs().sum(1) > 0
    assert active.sum(1).tolist() == [1] * 10
    assert active.int().argmax(1).tolist() == [0, 1, 2, 3, 4] * 2


def test_correlation_and_slope_by_hand() -> None:
    commands = axis_commands(5, 20, torch.Generator().manual_seed(3))
    speed = torch.tensor([1.5, 1.5, 0.012, 1.5, 1.5])
    answered = 0.9 * commands[:, 1:] * speed
    axes = compared(commands, answered, 128)
    assert all(axis == {"correlation": 1.0, "slope": 0.9} for axis in axes.values())
    assert all(bar.met for bar in passed(axes, residual_px(torch.zeros(5, 19, 5))))
    deaf = compared(commands, 0.01 * torch.randn(5, 19, 5), 128)
    missed = {bar.name for bar in passed(deaf, residual_px(torch.full((5, 19, 5), 0.3))) if not bar.met}
    assert {"camera_x_slope", "push_y_correlation", "camera_px", "subject_px"} <= missed


def test_a_slope_is_a_share_of_what_the_meter_finds_in_the_truth() -> None:
    found = calibrated({"push_x": {"correlation": 0.9, "slope": 0.6}}, {"push_x": {"correlation": 1.0, "slope": 0.8}})
    assert found == {
        "push_x": {"correlation": 0.9, "slope": 0.75, "measured_slope": 0.6, "truth_slope": 0.8},
    }


def test_displacements_point_to_the_right_and_up() -> None:
    window = Transitions(
        background=torch.tensor([[[-1.0, 2.0, 0.01]]]),
        subject=torch.tensor([[[3.0, 4.0, 0.0, 0.0]]]),
        degree=torch.zeros(1, 1, 1),
        flicker=torch.zeros(1, 1, 1),
    )
    found = displacements_of(window)
    assert found.camera[0, 0].tolist() == pytest.approx([1.0, 2.0, 0.01])
    assert found.subject[0, 0].tolist() == [3.0, -4.0]
    long = displacements_of(Transitions(*(part.expand(1, 9, -1) for part in window)))
    assert by_latent(long).shape == (1, 2, 5)


# -- rendered clips ----------------------------------------------------------------------------------------------------


def test_held_out_captions_say_what_their_specs_do() -> None:
    spec, captions = held_out_captions(40, 150)
    assert len(set(captions)) > 30
    pans = (spec.motion == 7).nonzero().flatten().tolist()
    assert pans
    assert all("left" in captions[row] for row in pans)
    assert held_out_captions(40, 150)[1] == captions
    still = scenes(12, 150, 1)
    assert still.motion.tolist() == [0] * 12
    assert int((still.light == 3).sum()) == 0


def real_sprites() -> Tensor:
    """Return the real subjects."""
    if not PACK.is_file():
        pytest.skip("needs train/data: python -m train.collect")
    return load_sprites(PACK)


@pytest.mark.soak
def test_displacement_of_rendered_clips_follows_the_truth() -> None:
    sprites = real_sprites()
    spec = scenes(20, sprites.shape[0], 3)
    commands = axis_commands(20, 9, torch.Generator().manual_seed(3))
    clips = render_clips(spec, sprites, commands, torch.Generator().manual_seed(4), latents=9)
    measured = measured_of([as_bytes(clips.frames)])
    step = clips.camera.diff(dim=1)
    zoom = (clips.camera[:, 1:, 2] + clips.camera[:, :-1, 2]).div(2).exp()[..., None]
    subject = clips.subject.diff(dim=1) * torch.tensor([1.0, -1.0])
    moved = torch.cat([step[..., :2] * zoom, step[..., 2:], subject], -1)
    true = moved.view(20, -1, 4, 5).mean(2)
    for axis, name in enumerate(ACTION_NAMES):
        rows = torch.arange(20) % 5 == axis
        x, y = true[rows][..., axis].flatten(), measured[rows][..., axis].flatten()
        assert float(torch.corrcoef(torch.stack([x, y]))[0, 1]) > 0.97, name
        assert 0.9 < float((x * y).sum() / x.square().sum()) < 1.1, name


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_judge_is_right_on_fresh_rendered_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """All combinations as drawn, including snow and plain studios, in which no pan is visible."""
    real_sprites()
    monkeypatch.setattr("bench.world_clips.PACK", PACK)
    fresh = gather(132, 8_123, CPU, with_degraded=False)
    assert shares_right(load_motion_judge(), fresh.clips, fresh.motions)["mean"] >= 0.9


def test_every_motion_comes_equally_often() -> None:
    spec, clips = motion_clips(11, 2, load_sprites(), torch.Generator().manual_seed(1), size_px=32)
    assert spec.motion.tolist() == list(range(11))
    assert clips.frames.shape == (11, 3, 5, 32, 32)
    assert all(subject >= 0 for subject, motion in zip(spec.subject, spec.motion, strict=True) if 1 <= motion <= 6)
    assert as_bytes(clips.frames).shape == (11, 5, 32, 32, 3)
