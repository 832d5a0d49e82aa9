"""Owns the wording of clips: a scene's caption with a phrase for its motion, and every word it can contain.

Stillness is mostly omitted.
"""

from __future__ import annotations

import random

from train.captions import canonical_caption, caption, join_words, mostly_first, template_words, words_of

from .motions import MOTIONS

STILL_SAID = 0.12
"""How often a caption says that nothing moves."""
BY_THE_NOUN = 0.7
"""How often a subject's motion follows its noun; otherwise it is placed between commas, as the camera's always is."""
IN_FRONT = 0.2
"""How often a motion between commas comes first."""


def _check(subject: int, motion: int) -> None:
    if not 0 <= motion < len(MOTIONS):
        raise IndexError(f"motion {motion} is outside 0..{len(MOTIONS) - 1}")
    if subject < 0 and MOTIONS[motion].needs_subject:
        raise ValueError(f"motion {MOTIONS[motion].term.name!r} needs a subject; give one, or another motion")


def clip_caption(subject: int, place: int, light: int, style: int, motion: int, rng: random.Random) -> str:
    """One caption of a clip, drawn with `rng`, "a robot bouncing on the beach at sunset, pencil sketch".

    Indices as in a ClipSpec. Raises IndexError for one outside the vocabulary, ValueError for a subject's motion
    without a subject.
    """
    _check(subject, motion)
    term = MOTIONS[motion].term
    if MOTIONS[motion].needs_subject and rng.random() < BY_THE_NOUN:
        return caption(subject, place, light, style, rng, doing=mostly_first(term.phrases, rng))
    scene = caption(subject, place, light, style, rng)
    if motion == 0 and rng.random() >= STILL_SAID:
        return scene
    said = mostly_first(term.labels if rng.random() < 0.7 else term.phrases, rng)
    return join_words(", ", said, scene) if rng.random() < IN_FRONT else join_words(", ", scene, said)


def canonical_clip_caption(subject: int, place: int, light: int, style: int, motion: int) -> str:
    """The canonical wording: "a robot bouncing on the beach, pencil sketch", "a robot on the beach, panning left"; for
    a still clip, its scene's. Raises as clip_caption.
    """
    _check(subject, motion)
    term = MOTIONS[motion].term
    if MOTIONS[motion].needs_subject:
        return canonical_caption(subject, place, light, style, doing=term.phrases[0])
    return join_words(", ", canonical_caption(subject, place, light, style), term.labels[0] if motion else "")


def clip_words() -> tuple[str, ...]:
    """Every word a clip's caption can contain, including those of train.captions.template_words, sorted."""
    texts = [text for motion in MOTIONS for text in (motion.term.name, *motion.term.phrases, *motion.term.labels)]
    return tuple(sorted({*template_words(), *(word for text in texts for word in words_of(text))}))
