"""Rendered clips: shapes, reproducibility by seed, and pictures that move according to the ground truth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from train.clips.actions import frame_count
from train.clips.motions import ClipSpec, motion_curves, sample_clip_specs
from train.clips.paths import ClipPaths, sample_start, trace_paths
from train.clips.render import Clips, render_clips, view_subjects
from train.lights import LIGHT_PAINTERS, NEAR_FALL, draw_tables
from train.vocabulary_world import LIGHTS

SIZE_PX = 48
CITY, SPACE, MEADOW = 4, 5, 7


@pytest.fixture
def sprites() -> torch.Tensor:
    """Three discs of different colours: [3, 4, 64, 64] RGBA."""
    line = torch.linspace(-1, 1, 64)
    disc = (line[:, None] ** 2 + line[None] ** 2 < 0.8).float()
    return torch.stack([torch.cat([c.view(3, 1, 1).expand(3, 64, 64), disc[None]]) for c in torch.eye(3)])


def clip_spec(*rows: tuple[int, int, int, int, int]) -> ClipSpec:
    return ClipSpec(*torch.tensor(rows).unbind(1))


def render(
    spec: ClipSpec, sprites: torch.Tensor, actions: torch.Tensor, seed: int = 1, size_px: int = SIZE_PX
) -> Clips:
    return render_clips(
        spec, sprites, actions, torch.Generator().manual_seed(seed), latents=actions.shape[1], size_px=size_px
    )


def test_clips_have_their_shape_and_repeat_under_a_seed(sprites: torch.Tensor) -> None:
    spec = sample_clip_specs(6, torch.Generator().manual_seed(2), torch.device("cpu"), None, subjects=3)
    actions = torch.zeros(6, 3, 5)
    one, same, other = (render(spec, sprites, actions, seed) for seed in (1, 1, 2))
    assert one.frames.shape == (6, 3, 9, SIZE_PX, SIZE_PX)
    assert (one.camera.shape, one.subject.shape) == ((6, 9, 3), (6, 9, 2))
    assert one.frames.dtype == torch.float32
    assert 0 <= float(one.frames.min()) < float(one.frames.max()) <= 1
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.frames, other.frames)


def test_groups_bound_memory_and_change_nothing(sprites: torch.Tensor) -> None:
    spec = clip_spec(*((i % 3, i, i % 4, 0, i + 1) for i in range(4)), (0, 1, 3, 0, 1), (0, 1, 3, 0, 2))
    actions, generator = torch.zeros(6, 2, 5), torch.Generator()
    small, large = (
        render_clips(
            spec, sprites, actions, generator.manual_seed(3), latents=2, size_px=SIZE_PX, group_frames=group
        ).frames
        for group in (1, 1000)
    )
    torch.testing.assert_close(small, large, atol=1e-6, rtol=0)


def test_a_still_clip_does_not_move_but_snow_falls(sprites: torch.Tensor) -> None:
    spec = clip_spec(*((0, CITY, light, 0, 0) for light in range(len(LIGHTS))))
    frames = render(spec, sprites, torch.zeros(4, 3, 5)).frames
    moved = (frames - frames[:, :, :1]).abs().amax((1, 2, 3, 4))
    assert float(moved[:3].max()) < 1e-6
    assert float(moved[3]) > 0.2


def test_flakes_fall_at_their_speed() -> None:
    snow, grey = LIGHT_PAINTERS[3], torch.full((2, 3, 50, 50), 0.4)
    place, far, near = draw_tables(grey[:1], torch.Generator().manual_seed(5))[3]
    tables = [table.expand(2, -1, -1, -1) for table in (place, torch.ones_like(far), near)]
    before, after = snow.paint(grey, tables, torch.tensor([0.0, 3 / (NEAR_FALL * 50)]))
    torch.testing.assert_close(after[:, 3:44], before[:, :41], atol=1e-5, rtol=0)
    assert float(before[:, :41].max()) > 0.9


def test_an_action_shows_in_its_own_frames(sprites: torch.Tensor) -> None:
    actions = torch.zeros(1, 4, 5)
    actions[0, 2, 0] = 1
    frames = render(clip_spec((0, CITY, 0, 0, 0)), sprites, actions).frames[0]
    changed = (frames.diff(dim=1).abs().amax((0, 2, 3)) > 1e-3).nonzero().flatten() + 1
    assert changed.tolist() == [5, 6, 7, 8]


def measured_shift(first: torch.Tensor, later: torch.Tensor) -> tuple[float, float]:
    """By how many px (right, down) the picture [3, S, S] has moved, by search over quarters and then tenths of one."""
    size, guess, margin = first.shape[-1], torch.zeros(2), 14
    for span, step in ((10.0, 1.0), (1.0, 0.25), (0.3, 0.05)):
        offsets = torch.arange(-span, span + step / 2, step)
        pairs = torch.cartesian_prod(offsets, offsets) + guess
        theta = torch.eye(2).repeat(len(pairs), 1, 1)
        theta = torch.cat([theta, (-pairs * 2 / size).unsqueeze(-1)], 2)
        grid = functional.affine_grid(theta, [len(pairs), 3, size, size], align_corners=False)
        moved = functional.grid_sample(first.expand(len(pairs), -1, -1, -1), grid, align_corners=False)
        inner = (slice(None), slice(None), slice(margin, -margin), slice(margin, -margin))
        guess = pairs[(moved[inner] - later[None][inner]).abs().mean((1, 2, 3)).argmin()]
    return float(guess[0]), float(guess[1])


@pytest.mark.parametrize("place", [CITY, MEADOW])
def test_the_background_moves_as_the_camera_path_says(sprites: torch.Tensor, place: int) -> None:
    actions = torch.zeros(1, 3, 5)
    actions[0, :, 0], actions[0, :, 1] = 1.0, -0.4
    clips = render(clip_spec((-1, place, 0, 0, 0)), sprites, actions, size_px=96)
    camera = clips.camera[0]
    assert bool((camera[:, 2] == camera[0, 2]).all())
    gone = (camera[8, :2] - camera[0, :2]) * camera[0, 2].exp()
    right, down = measured_shift(clips.frames[0, :, 0], clips.frames[0, :, 8])
    assert right == pytest.approx(-float(gone[0]), abs=0.3)
    assert down == pytest.approx(float(gone[1]), abs=0.3)
    assert float(gone[0]) == pytest.approx(8 * 1.5 * 96 / 128, rel=1e-3)


def test_the_world_has_no_end_sideways(sprites: torch.Tensor) -> None:
    actions = torch.zeros(1, 40, 5)
    actions[..., 0] = 1
    frames = render(clip_spec((-1, CITY, 0, 0, 0)), sprites, actions, size_px=32).frames[0]
    change = frames.diff(dim=1).abs().mean((0, 2, 3))
    assert float(change.min()) > 0.2 * float(change.median())
    assert float(change.max()) < 3 * float(change.median())


@pytest.mark.parametrize("motion", [0, 1, 2, 3, 6])
def test_the_subject_is_where_its_path_says(sprites: torch.Tensor, motion: int) -> None:
    actions = torch.zeros(2, 4, 5)
    actions[:, :, 3], actions[:, :, 4] = 0.6, -0.3
    generator = torch.Generator().manual_seed(4)
    curves = motion_curves(torch.full((2,), motion), frame_count(4), generator)
    start = sample_start(torch.zeros(2, 4, 5), generator)
    paths: ClipPaths = trace_paths(start, curves, actions, torch.full((2, 1), 0.45), 64)
    cover = view_subjects(sprites[:2], paths, SIZE_PX)[:, 3].view(2, -1, SIZE_PX, SIZE_PX)
    line = torch.arange(SIZE_PX) + 0.5
    centre_x = (cover * line).sum((2, 3)) / cover.sum((2, 3))
    centre_y = (cover * line.view(-1, 1)).sum((2, 3)) / cover.sum((2, 3))
    torch.testing.assert_close(centre_x, paths.x * SIZE_PX, atol=0.1, rtol=0)
    torch.testing.assert_close(centre_y, paths.y * SIZE_PX, atol=0.1, rtol=0)


def test_a_bouncing_subjects_shadow_stays_on_the_ground(sprites: torch.Tensor) -> None:
    spec = clip_spec((0, MEADOW, 0, 0, 1))
    with_subject = render(spec, sprites, torch.zeros(1, 7, 5))
    without = render(spec, sprites * torch.tensor([1, 1, 1, 0.0]).view(1, 4, 1, 1), torch.zeros(1, 7, 5))
    darker = (without.frames - with_subject.frames)[0].mean(0)
    disc_bottom = with_subject.subject[0, :, 1] + 0.45 * 0.58 * SIZE_PX
    high = int(with_subject.subject[0, :, 1].argmin())
    column = darker[high, :, round(float(with_subject.subject[0, high, 0]))]
    shadow = int(column[int(disc_bottom[high]) + 2 :].argmax()) + int(disc_bottom[high]) + 2
    lowest = float(disc_bottom.max())
    assert float(column[shadow]) > 0.05
    assert abs(shadow - lowest) < 5


def test_a_clip_without_a_subject_is_its_place_alone(sprites: torch.Tensor) -> None:
    spec = clip_spec((-1, MEADOW, 0, 0, 9))
    shown = render(spec, sprites, torch.zeros(1, 3, 5)).frames
    assert torch.equal(shown, render(spec, torch.zeros_like(sprites) + 0.5, torch.zeros(1, 3, 5)).frames)


def test_wrong_shapes_are_refused(sprites: torch.Tensor) -> None:
    spec = clip_spec((0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="RGBA"):
        render(spec, sprites[:, :3], torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match=r"actions must be \(1, 2, 5\)"):
        render_clips(spec, sprites, torch.zeros(1, 3, 5), torch.Generator(), latents=2)
