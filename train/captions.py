"""Owns the wording of captions: templates over the vocabulary, and every word they can produce.

Omitted components have a fixed meaning: no place is the studio, no light is day, no style is plain, no subject is
an empty scene.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from .vocabulary import SUBJECTS, Subject
from .vocabulary_world import LIGHTS, PLACES, STUDIO, STYLES, Term

PHOTO_WORDS = ("photo", "photograph", "picture")
"""Subject words for camera pictures; the first is canonical."""
EMPTY_WORDS = ("empty scene", "empty place")
"""Sometimes used when there is no subject."""

Parts = tuple[str, Term | None, Term | None, Term | None]
Template = Callable[[Parts, random.Random], str]


def subject_names(subject: Subject) -> tuple[str, ...]:
    """The wordings of a subject, canonical first, without duplicates."""
    return tuple(dict.fromkeys((subject.name, *subject.words)))


def with_article(noun: str) -> str:
    """The noun with "a" or "an" by its first letter."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _phrase(term: Term | None, rng: random.Random) -> str:
    return "" if term is None else mostly_first(term.phrases, rng)


def _label(term: Term | None, rng: random.Random) -> str:
    return "" if term is None else mostly_first(term.labels, rng)


def mostly_first(wordings: tuple[str, ...], rng: random.Random) -> str:
    """One wording, in at least 60 % of cases the canonical (first) one."""
    return wordings[0] if rng.random() < 0.6 else rng.choice(wordings)


def join_words(separator: str, *pieces: str) -> str:
    """The non-empty pieces, joined by the separator."""
    return separator.join(piece for piece in pieces if piece)


def _canonical(parts: Parts, rng: random.Random) -> str:
    """'a robot on the beach at sunset, pencil sketch'."""
    noun, place, light, style = parts
    return join_words(
        ", ", join_words(" ", noun and with_article(noun), _phrase(place, rng), _phrase(light, rng)), _label(style, rng)
    )


def _style_first(parts: Parts, rng: random.Random) -> str:
    """'pencil sketch of a robot, beach, sunset'."""
    noun, place, light, style = parts
    head = _label(style, rng)
    first = f"{head} of {with_article(noun)}" if head and noun else head or (noun and with_article(noun))
    return join_words(", ", first, _label(place, rng), _label(light, rng))


def _keywords(parts: Parts, rng: random.Random) -> str:
    """'robot, beach, sunset, pencil sketch'."""
    noun, place, light, style = parts
    return join_words(", ", noun, _label(place, rng), _label(light, rng), _label(style, rng))


def _shuffled(parts: Parts, rng: random.Random) -> str:
    """'sunset, pencil sketch, robot, beach': keywords in any order."""
    words = [parts[0], *(_label(term, rng) for term in parts[1:])]
    rng.shuffle(words)
    return join_words(", ", *words)


def _style_phrase(parts: Parts, rng: random.Random) -> str:
    """'a robot on the beach at sunset as a pencil sketch'."""
    noun, place, light, style = parts
    return join_words(" ", noun and with_article(noun), _phrase(place, rng), _phrase(light, rng), _phrase(style, rng))


def _light_first(parts: Parts, rng: random.Random) -> str:
    """'at sunset, a robot on the beach, pencil sketch'."""
    noun, place, light, style = parts
    return join_words(
        ", ", _phrase(light, rng), join_words(" ", noun and with_article(noun), _phrase(place, rng)), _label(style, rng)
    )


def _definite(parts: Parts, rng: random.Random) -> str:
    """'the robot, on the beach, at sunset, pencil sketch'."""
    noun, place, light, style = parts
    return join_words(", ", noun and f"the {noun}", _phrase(place, rng), _phrase(light, rng), _label(style, rng))


TEMPLATES: tuple[tuple[Template, float], ...] = (
    (_canonical, 0.40),
    (_style_first, 0.14),
    (_keywords, 0.14),
    (_shuffled, 0.06),
    (_style_phrase, 0.12),
    (_light_first, 0.08),
    (_definite, 0.06),
)
"""Each template with the share of captions it writes."""


def caption(
    subject: int, place: int, light: int, style: int, rng: random.Random, *, photo: bool = False, doing: str = ""
) -> str:
    """One caption for a combination of indices (-1 or 0 is the default, usually omitted), drawn with `rng`.

    photo: describe a camera picture; subject and place are then ignored. doing: words placed right after the subject,
    "bouncing". The caption of an empty studio can be "". Raises IndexError for an index outside the vocabulary.
    """
    if photo:
        noun, where = mostly_first(PHOTO_WORDS, rng), None
    else:
        noun = mostly_first(subject_names(SUBJECTS[subject]), rng) if subject >= 0 else ""
        noun = join_words(" ", noun, doing)
        where = PLACES[place] if place >= 0 else (STUDIO if rng.random() < 0.3 else None)
        if not noun and rng.random() < 0.3:
            noun = rng.choice(EMPTY_WORDS)
    when = LIGHTS[light] if light > 0 or rng.random() < 0.1 else None
    how = STYLES[style] if style > 0 or rng.random() < 0.1 else None
    template = rng.choices([t for t, _ in TEMPLATES], [share for _, share in TEMPLATES])[0]
    return template((noun, where, when, how), rng)


def canonical_caption(subject: int, place: int, light: int, style: int, *, photo: bool = False, doing: str = "") -> str:
    """The canonical wording, "a robot on the beach at sunset, pencil sketch", with defaults omitted and `doing` right
    after the subject.
    """
    noun = PHOTO_WORDS[0] if photo else (SUBJECTS[subject].name if subject >= 0 else "")
    noun = join_words(" ", noun, doing)
    where = PLACES[place].phrases[0] if place >= 0 and not photo else ""
    when = LIGHTS[light].phrases[0] if light > 0 else ""
    return join_words(
        ", ", join_words(" ", noun and with_article(noun), where, when), STYLES[style].labels[0] if style > 0 else ""
    )


def words_of(text: str) -> list[str]:
    """The lower-case words of a caption, without punctuation except inner hyphens and apostrophes."""
    return re.findall(r"[a-z0-9]+(?:[-'][a-z0-9]+)*", text.lower())


def template_words() -> tuple[str, ...]:
    """Every word a caption can contain, sorted."""
    texts = ["a", "an", "the", "of", *PHOTO_WORDS, *EMPTY_WORDS]
    texts.extend(name for subject in SUBJECTS for name in subject_names(subject))
    for term in (*PLACES, STUDIO, *LIGHTS, *STYLES):
        texts.extend((term.name, *term.phrases, *term.labels))
    return tuple(sorted({word for text in texts for word in words_of(text)}))
