"""Words outside the bundled model's world: found in order, each once, with similar known ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.page.prompts import Prompts
from pipelines.core.errors import ModelLayoutError
from pipelines.files.hub import BUNDLED_FOLDER, bundled_names
from pipelines.files.vocabulary import Vocabulary, world_file
from tests.fakes.tiny_models import write_json

WORLD = {
    "subjects": [{"name": "robot", "words": ["robot", "android"]}, {"name": "cat", "words": ["cat"]}],
    "places": [{"name": "beach", "words": ["on the beach"]}],
    "lights": [{"name": "day", "words": []}],
    "styles": [{"name": "pencil", "words": ["pencil sketch"]}],
    "template_words": ["a", "at"],
}


def test_the_world_is_found_by_name_and_by_folder(tmp_path: Path) -> None:
    assert world_file("mini-image") == BUNDLED_FOLDER / "mini-image" / "world.json"
    assert world_file(str(BUNDLED_FOLDER / "mini-image")) == world_file("mini-image")
    assert (world_file(str(tmp_path)), world_file("owner/name"), world_file("identity")) == (None, None, None)


@pytest.fixture
def words(tmp_path: Path) -> Vocabulary:
    write_json(tmp_path / "world.json", WORLD)
    return Vocabulary.read(tmp_path / "world.json")


def test_known_prompts_give_no_notice(words: Vocabulary) -> None:
    assert words.unknown("A cat ON the beach, pencil sketch!") == ()
    assert words.notice("a robot") == ""
    assert words.notice("") == ""


def test_unknown_words_are_told_once_with_near_ones(words: Vocabulary) -> None:
    unknown = words.unknown("a robt and a zebra and a beech")
    assert [entry.word for entry in unknown] == ["robt", "and", "zebra", "beech"]
    assert unknown[0].near[0] == "robot"
    assert unknown[3].near == ("beach",)
    assert words.notice("a robt") == "This model's world has no 'robt' (try 'robot')."


def test_without_near_ones_it_says_what_it_knows(words: Vocabulary) -> None:
    assert words.notice("zyx") == "This model's world has no 'zyx'. It knows, for example: robot, cat."
    assert "and 2 more" in words.notice("q w x y z v r")


def test_the_bundled_world_is_readable() -> None:
    words = Vocabulary.read(BUNDLED_FOLDER / "mini-image" / "world.json")
    assert {"robot", "cat"} <= words.words
    assert words.notice("a cat") == ""


@pytest.mark.parametrize("name", bundled_names())
def test_a_bundled_model_knows_what_its_page_suggests(name: str) -> None:
    world = world_file(name)
    assert world is not None
    prompts = Prompts.of_world(world)
    assert len(prompts.examples) == 6
    assert [prompts.notice(example) for example in prompts.examples] == [""] * 6
    assert "lighthouse" in prompts.notice("a lighthouse in a storm")


def test_motions_are_suggested_where_a_world_has_them() -> None:
    world = world_file("mini-video")
    assert world is not None
    examples = Prompts.of_world(world).examples
    assert examples[0] == "a robot bouncing on the beach at sunset"
    assert examples[1].endswith(", moving from side to side")


def test_a_missing_world_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLayoutError, match=r"world\.json is missing"):
        Vocabulary.read(tmp_path / "world.json")
