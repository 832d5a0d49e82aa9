"""What the page says about prompts: examples to click, and a notice when words are outside the model's world."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.vocabulary import Vocabulary

_MOST_EXAMPLES = 6
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
    """examples: complete prompts. check: a sentence about a prompt's unknown words, or an empty one."""

    examples: tuple[str, ...] = _GENERAL_EXAMPLES
    check: Callable[[str], str] = _nothing

    @classmethod
    def of_world(cls, world: Path) -> Prompts:
        """Examples and words of a bundled model, from its world.json."""
        return cls(examples=world_examples(world), check=Vocabulary.read(world).notice)

    def notice(self, prompt: str) -> str:
        """HTML to show under the prompt; empty when there is nothing to say."""
        line = self.check(prompt) if prompt.strip() else "No prompt yet: the model draws what it likes."
        return f"<p class='zt-notice'>{html.escape(line)}</p>" if line else ""


def world_examples(world: Path) -> tuple[str, ...]:
    """A few prompts that walk through a world's subjects, places, lights and styles, spread over each list."""
    content = json.loads(world.read_text(encoding="utf-8"))
    subjects = [str(entry["name"]) for entry in content.get("subjects", ())]
    places, lights, styles = (_phrases(content, kind) for kind in ("places", "lights", "styles"))
    prompts = []
    for i in range(min(_MOST_EXAMPLES, len(subjects))):
        subject = subjects[i * len(subjects) // _MOST_EXAMPLES if len(subjects) > _MOST_EXAMPLES else i]
        article = "an" if subject[0] in "aeiou" else "a"
        text = " ".join(part for part in (article, subject, _turn(places, i), _turn(lights, i // 2)) if part)
        style = _turn(styles, i)
        prompts.append(f"{text}, {style}" if style else text)
    return tuple(prompts)


def _phrases(content: dict[str, list[dict[str, list[str]]]], kind: str) -> list[str]:
    """The first phrase of each entry; an entry without one is the plain case."""
    return [str(words[0]) if (words := entry.get("words")) else "" for entry in content.get(kind, ())]


def _turn(phrases: list[str], number: int) -> str:
    return phrases[number % len(phrases)] if phrases else ""
