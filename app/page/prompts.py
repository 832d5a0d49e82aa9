"""Prompt texts of the page: examples to click, and a notice about words outside the model's vocabulary."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files.vocabulary import Vocabulary

_MAX_EXAMPLES = 6
_PREPOSITIONS = frozenset(("on", "in", "at", "by", "among", "under", "before", "with"))
_GENERAL_EXAMPLES = (
    "a lighthouse in a storm, oil painting",
    "a city at night, neon lines",
    "a forest in autumn, watercolour",
    "portrait of a robot, pencil sketch",
)


def _nothing(_: str) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """examples: complete prompts. check: returns a sentence about a prompt's unknown words, or ""."""

    examples: tuple[str, ...] = _GENERAL_EXAMPLES
    check: Callable[[str], str] = _nothing

    @classmethod
    def of_world(cls, world: Path) -> Prompts:
        """Examples and vocabulary of a bundled model, from its world.json."""
        return cls(examples=world_examples(world), check=Vocabulary.read(world).notice)

    def notice(self, prompt: str) -> str:
        """HTML to show below the prompt, or ""."""
        line = self.check(prompt) if prompt.strip() else "No prompt yet: the model draws what it likes."
        return f"<p class='zt-notice'>{html.escape(line)}</p>" if line else ""


def world_examples(world: Path) -> tuple[str, ...]:
    """Prompts that cycle through a world's subjects, places, lights, styles and motions; the last fits a camera."""
    content: dict[str, Any] = json.loads(world.read_text(encoding="utf-8"))
    names = (str(entry["name"]) for entry in content.get("subjects", ()))
    subjects = [name for name in names if not name.endswith("s")]  # no plurals: "a fries"
    styles = [str(entry["name"]) for entry in content.get("styles", ())][1:]  # the first is the plain one
    motions = [str(entry["name"]) for entry in content.get("motions", ())][1:]  # the first is standing still
    places, lights = (_phrases(content.get(kind, ())) for kind in ("places", "lights"))
    prompts = [str(content["example"])] if content.get("example") else []
    for i in range(1, min(_MAX_EXAMPLES - 1, len(subjects))):
        subject = subjects[i * (len(subjects) - 1) // _MAX_EXAMPLES] if len(subjects) > _MAX_EXAMPLES else subjects[i]
        article = "an" if subject[0] in "aeiou" else "a"
        light = _cycle(lights, i) if i % 2 else ""
        text = " ".join(part for part in (article, subject, _cycle(places, i), light) if part)
        motion = _cycle(motions, 3 * i - 2)  # far apart in the list: subject motions come before camera motions
        prompts.append(", ".join(part for part in (text, _cycle(styles, i), motion) if part))
    if content.get("photo_words") and styles:
        prompts.append(f"{content['photo_words'][0]}, {styles[-1]}")
    return tuple(prompts)


def _phrases(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Each entry's first phrase that can follow a subject: 'on the beach', 'at sunset'."""
    found = (next((w for w in entry.get("words", ()) if w.split()[0] in _PREPOSITIONS), "") for entry in entries)
    return [phrase for phrase in found if phrase]


def _cycle(phrases: list[str], number: int) -> str:
    return phrases[number % len(phrases)] if phrases else ""
