"""Words outside of the bundled model's world: found in order, each once, with near ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ModelLayoutError
from pipelines.hub import BUNDLED_FOLDER
from pipelines.vocabulary import Vocabulary, world_file
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


def test_a_missing_world_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLayoutError, match=r"world\.json is missing"):
        Vocabulary.read(tmp_path / "world.json")
