"""Owns the vocabulary that a bundled model was trained on: the unknown words of a prompt, and similar known ones.

Reads world.json in the folder of such a model; independent of tokenizers and networks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .hub import BUNDLED_FOLDER, bundled_names
from .layout import read_json

WORLD_FILE = "world.json"
_KINDS = ("subjects", "places", "lights", "styles", "motions")
_WORD = re.compile(r"[a-z]+")
_MAX_NEAR = 3
_MAX_NAMED = 5


def world_file(model: str) -> Path | None:
    """Return the world.json of a bundled name or local folder, without loading the model; None if there is none."""
    folder = BUNDLED_FOLDER / model if model in bundled_names() else Path(model).expanduser()
    world = folder / WORLD_FILE
    return world if world.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownWord:
    """A word of a prompt that is not in the model's vocabulary. near: similarly spelled known words, best first."""

    word: str
    near: tuple[str, ...]


class Vocabulary:
    """The words of one model."""

    def __init__(self, words: Iterable[str], examples: Iterable[str] = ()) -> None:
        """words: single lower-case words. examples: a few known subjects, suggested if no word is similar."""
        self.words = frozenset(words)
        self._examples = tuple(examples)

    @classmethod
    def read(cls, world: Path) -> Self:
        """Read a model's world.json. Raises ModelLayoutError if it is missing or not a JSON object."""
        content = read_json(world)
        phrases = [*_phrases(content), *content.get("known_words", content.get("template_words", ()))]
        subjects = [str(entry.get("name")) for entry in content.get("subjects", ())]
        return cls((word for phrase in phrases for word in _split(phrase)), subjects[:4])

    def unknown(self, text: str) -> tuple[UnknownWord, ...]:
        """Return the unknown words of a text, in order, each once."""
        seen = dict.fromkeys(word for word in _split(text) if word not in self.words)
        return tuple(UnknownWord(word=word, near=self._near(word)) for word in seen)

    def notice(self, text: str) -> str:
        """Return a sentence for the user about unknown words; empty if all words are known."""
        unknown = self.unknown(text)
        if not unknown:
            return ""
        named = [
            f"{entry.word!r} (try {' or '.join(map(repr, entry.near))})" if entry.near else repr(entry.word)
            for entry in unknown[:_MAX_NAMED]
        ]
        rest = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        examples = "" if any(entry.near for entry in unknown) or not self._examples else self._hint()
        return f"This model's world has no {', '.join(named)}{rest}.{examples}"

    def _hint(self) -> str:
        return f" It knows, for example: {', '.join(self._examples)}."

    def _near(self, word: str) -> tuple[str, ...]:
        return tuple(difflib.get_close_matches(word, sorted(self.words), n=_MAX_NEAR, cutoff=0.6))


def _phrases(content: dict[str, Any]) -> Iterator[str]:
    for kind in _KINDS:
        for entry in content.get(kind, ()):
            yield str(entry.get("name", ""))
            yield from (str(phrase) for phrase in entry.get("words", ()))


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())
