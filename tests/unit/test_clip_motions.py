"""The motions of clips: which are drawn for what, their extent, and captions of known words only."""

from __future__ import annotations

import random

import pytest
import torch

from train.captions import canonical_caption, template_words
from train.clips.captions import canonical_clip_caption, clip_caption, clip_words
from train.clips.motions import MOTIONS, Part, motion_curves, sample_clip_specs, sine
from train.vocabulary import SUBJECTS
from train.world import is_held_out

CPU = torch.device("cpu")
FRAMES = 41
NAMES = [motion.term.name for motion in MOTIONS]


def test_the_motions_have_their_indices() -> None:
    assert NAMES == [
        "still", "bouncing", "moving from side to side", "spinning", "rocking", "growing and shrinking",
        "moving in circles", "panning left", "panning right", "zooming in and out", "tilting up and down",
    ]  # fmt: skip
    assert [motion.needs_subject for motion in MOTIONS] == [False] + [True] * 6 + [False] * 4
    wordings = [word for motion in MOTIONS for word in {*motion.term.phrases, *motion.term.labels}]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("held_out", [False, True])
def test_combinations_keep_to_their_side_and_empty_scenes_to_the_camera(held_out: bool) -> None:
    spec = sample_clip_specs(400, torch.Generator().manual_seed(1), CPU, held_out)
    rows = torch.stack(spec, 1).tolist()
    assert {is_held_out(*row[:4]) for row in rows} == {held_out}
    assert {row[4] for row in rows} == set(range(len(MOTIONS)))
    assert {row[4] for row in rows if row[0] < 0} <= {0, 7, 8, 9, 10}
    assert 0.05 < sum(row[4] == 0 for row in rows) / 400 < 0.20


def test_hard_motions_are_drawn_more_often_for_training() -> None:
    counts = [
        torch.bincount(sample_clip_specs(4000, torch.Generator().manual_seed(2), CPU, None, emphasised=on).motion)
        for on in (False, True)
    ]
    shares = [(count[NAMES.index("spinning")] / count[NAMES.index("bouncing")]).item() for count in counts]
    assert shares == pytest.approx([1.0, 2.5], rel=0.2)


def test_specs_repeat_under_a_seed() -> None:
    one, same, other = (sample_clip_specs(20, torch.Generator().manual_seed(seed), CPU, None) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.subject, other.subject)


def curves_of(name: str) -> torch.Tensor:
    """Return the curves [32, F, channels] of 32 clips with one motion; those that it does not move must be 0."""
    motion = torch.full((32,), NAMES.index(name))
    curves = motion_curves(motion, FRAMES, torch.Generator().manual_seed(5))
    used = {part.channel for part in MOTIONS[NAMES.index(name)].parts}
    for channel in {"x", "y", "hop", "turn", "lean", "growth", "camera_x", "camera_y", "zoom"} - used:
        assert not bool(curves.channel(channel).any())
    return torch.stack([curves.channel(channel) for channel in sorted(used)], -1)


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("bouncing", 8 / 128), ("moving from side to side", 16 / 128), ("moving in circles", 16 / 128),
        ("rocking", 0.35), ("growing and shrinking", 0.27), ("zooming in and out", 0.25),
        ("tilting up and down", 16 / 128), ("panning left", 40 / 128), ("panning right", 40 / 128), ("spinning", 5.0),
    ],
)  # fmt: skip
def test_every_motion_can_be_seen_within_two_and_a_half_seconds(name: str, minimum: float) -> None:
    curves = curves_of(name)
    assert bool((curves.amax(1) - curves.amin(1) > minimum).all())


@pytest.mark.parametrize(
    "name",
    ["moving from side to side", "rocking", "growing and shrinking", "zooming in and out", "tilting up and down"],
)
def test_motions_begin_in_one_direction(name: str) -> None:
    begins = curves_of(name)[:, 1]
    assert bool((begins > 0).all())


def test_still_is_still_and_pans_keep_their_direction() -> None:
    assert curves_of("bouncing").amin() >= 0
    assert not bool(motion_curves(torch.zeros(4, dtype=torch.long), 9, torch.Generator()).value.any())
    assert bool((curves_of("panning right").diff(dim=1) > 1 / 128).all())
    assert bool((curves_of("panning left").diff(dim=1) < -1 / 128).all())


def test_a_part_names_a_channel() -> None:
    with pytest.raises(ValueError, match="sideways"):
        Part(channel="sideways", wave=sine, low=0, high=1)


def test_captions_use_known_words_and_name_the_motion() -> None:
    known, rng = set(clip_words()), random.Random(0)
    assert known > set(template_words())
    for _ in range(400):
        subject = rng.randrange(-1, len(SUBJECTS))
        motion = rng.randrange(11) if subject >= 0 else rng.choice([0, 7, 8, 9, 10])
        text = clip_caption(subject, rng.randrange(-1, 12), rng.randrange(4), rng.randrange(7), motion, rng)
        assert set(text.replace(",", " ").split()) <= known, text
        term = MOTIONS[motion].term
        assert motion == 0 or any(words in text for words in (*term.phrases, *term.labels)), text
    for motion in range(11):
        assert set(canonical_clip_caption(5, 3, 1, 2, motion).replace(",", " ").split()) <= known


def test_stillness_is_mostly_unsaid() -> None:
    rng = random.Random(1)
    said = sum("still" in clip_caption(0, 0, 0, 0, 0, rng) for _ in range(300))
    assert 5 < said < 80


def test_canonical_captions_follow_the_prompt_grammar() -> None:
    assert canonical_clip_caption(0, 0, 1, 1, 1) == "a robot bouncing on the beach at sunset, pencil sketch"
    assert canonical_clip_caption(0, 0, 0, 0, 7) == "a robot on the beach, panning left"
    assert canonical_clip_caption(-1, -1, 0, 0, 9) == "zooming in and out"
    assert canonical_clip_caption(0, 2, 3, 4, 0) == canonical_caption(0, 2, 3, 4)


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a subject"):
        canonical_clip_caption(-1, 0, 0, 0, 3)
    with pytest.raises(IndexError, match="motion 11"):
        clip_caption(0, 0, 0, 0, 11, random.Random(0))


def test_motions_begin_at_rest_unless_any_phase_is_wanted() -> None:
    motion = torch.full((64,), NAMES.index("spinning"))
    at_rest, anywhere = (
        motion_curves(motion, 2, torch.Generator().manual_seed(1), any_phase=any_phase).channel("turn")[:, 0]
        for any_phase in (False, True)
    )
    assert (at_rest == 0).all()
    assert float(anywhere.std()) > 1
