"""The procedural world: shapes, ranges, determinism, a stable split, and captions made of known words only."""

from __future__ import annotations

import random

import pytest
import torch

from train.captions import canonical_caption, caption, template_words
from train.lights import apply_lights
from train.styles import apply_styles
from train.vocabulary import SUBJECTS
from train.vocabulary_world import LIGHTS, PLACES, STYLES
from train.world import SceneSpec, is_held_out, render_scenes, sample_specs

SIZE_PX = 64


@pytest.fixture
def sprites() -> torch.Tensor:
    """Three discs of different colours: [3, 4, 32, 32] RGBA."""
    line = torch.linspace(-1, 1, 32)
    disc = (line[:, None] ** 2 + line[None] ** 2 < 0.8).float()
    return torch.stack([torch.cat([c.view(3, 1, 1).expand(3, 32, 32), disc[None]]) for c in torch.eye(3)])


def every_place() -> SceneSpec:
    places = torch.arange(-1, len(PLACES))
    return SceneSpec(
        subject=places.clamp(max=1), place=places, light=places % len(LIGHTS), style=torch.zeros_like(places)
    )


def test_the_world_is_as_large_as_promised() -> None:
    assert len(SUBJECTS) >= 150
    assert (len(PLACES), len(LIGHTS), len(STYLES) - 1) == (12, 4, 6)
    words = [word for subject in SUBJECTS for word in subject.words]
    assert len(set(words)) == len(words)


def test_scenes_have_range_and_repeat_under_a_seed(sprites: torch.Tensor) -> None:
    one, same, other = (
        render_scenes(every_place(), sprites, torch.Generator().manual_seed(seed), SIZE_PX)[1] for seed in (1, 1, 2)
    )
    assert one.shape == (13, 3, SIZE_PX, SIZE_PX)
    assert one.dtype == torch.float32
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_no_subject_means_an_empty_scene(sprites: torch.Tensor) -> None:
    spec = every_place()
    spec = spec._replace(subject=torch.full_like(spec.place, -1))
    with_sprites = render_scenes(spec, sprites, torch.Generator().manual_seed(1), SIZE_PX)[0]
    without = render_scenes(spec, torch.zeros_like(sprites), torch.Generator().manual_seed(1), SIZE_PX)[0]
    assert torch.equal(with_sprites, without)


def test_every_style_changes_every_picture_and_is_deterministic(sprites: torch.Tensor) -> None:
    plain = render_scenes(every_place(), sprites, torch.Generator().manual_seed(3), SIZE_PX)[0]
    for style in range(1, len(STYLES)):
        index = torch.full((plain.shape[0],), style)
        styled = apply_styles(plain, index)
        assert float((styled - plain).abs().mean((1, 2, 3)).min()) > 0.02, STYLES[style].name
        assert torch.equal(styled, apply_styles(plain, index))


def test_plain_and_styled_share_their_layout(sprites: torch.Tensor) -> None:
    spec = every_place()._replace(style=torch.full((13,), 2))
    plain, styled = render_scenes(spec, sprites, torch.Generator().manual_seed(4), SIZE_PX)
    assert torch.equal(apply_styles(plain, spec.style), styled)


def test_the_split_is_stable_and_about_a_tenth() -> None:
    assert [s for s in range(60) if is_held_out(s, 0, 0, 0)] == [1, 9, 10, 11, 32, 38, 41, 50]
    share = sum(is_held_out(s, p, 0, 1) for s in range(161) for p in range(12)) / (161 * 12)
    assert 0.08 < share < 0.12


@pytest.mark.parametrize("held_out", [False, True])
def test_sampled_combinations_keep_to_their_side(held_out: bool) -> None:
    spec = sample_specs(50, torch.Generator().manual_seed(5), torch.device("cpu"), held_out)
    rows = torch.stack(spec, 1).tolist()
    assert {is_held_out(*row) for row in rows} == {held_out}


def test_captions_use_known_words_and_name_what_is_there() -> None:
    known, rng = set(template_words()), random.Random(0)
    for _ in range(300):
        spec = (rng.randrange(-1, len(SUBJECTS)), rng.randrange(-1, 12), rng.randrange(4), rng.randrange(7))
        text = caption(*spec, rng)
        assert set(text.replace(",", " ").split()) <= known, text
        if spec[0] >= 0:
            assert any(word in text for word in SUBJECTS[spec[0]].words), text
    assert "photo" in caption(-1, -1, 0, 1, rng, photo=True)


def test_lights_keep_day_and_change_everything_else() -> None:
    picture = torch.rand(1, 3, SIZE_PX, 96, generator=torch.Generator().manual_seed(6)).expand(len(LIGHTS), -1, -1, -1)
    lit = apply_lights(picture, torch.arange(len(LIGHTS)))
    assert torch.equal(lit[0], picture[0])
    assert float((lit[1:] - picture[1:]).abs().mean((1, 2, 3)).min()) > 0.05
    assert torch.equal(lit, apply_lights(picture, torch.arange(len(LIGHTS))))
    varied = apply_lights(picture, torch.arange(len(LIGHTS)), torch.Generator().manual_seed(7))
    assert not torch.equal(lit[3], varied[3])


def test_styles_work_on_pictures_that_are_not_square() -> None:
    picture = torch.rand(len(STYLES), 3, 48, 80, generator=torch.Generator().manual_seed(8))
    styled = apply_styles(picture, torch.arange(len(STYLES)))
    assert styled.shape == picture.shape
    assert bool(styled.isfinite().all())


def test_wrong_sprites_are_refused(sprites: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="RGBA"):
        render_scenes(every_place(), sprites[:, :3], torch.Generator().manual_seed(1), SIZE_PX)


def test_the_canonical_caption_follows_the_prompt_grammar() -> None:
    robot = next(index for index, subject in enumerate(SUBJECTS) if subject.name == "robot")
    assert canonical_caption(robot, 0, 1, 1) == "a robot on the beach at sunset, pencil sketch"
    assert canonical_caption(robot, -1, 0, 0) == "a robot"
    assert canonical_caption(-1, -1, 2, 3, photo=True) == "a photo at night, watercolour"
