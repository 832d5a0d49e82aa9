"""Owns weighted prompts, the value of the control `prompt`: checks, and parsing from text and JSON.

Independent of text encoders.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ControlError

MAX_PROMPT_CHARACTERS = 2000
MAX_PROMPTS = 8
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPrompt:
    """A text and its weight (> 0, relative to the other prompts in the blend)."""

    text: str
    weight: float = 1.0


def check_length(name: str, text: str) -> None:
    """Raise ControlError for a text longer than MAX_PROMPT_CHARACTERS. name: of the control."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ControlError(
            f"{name} has {len(text)} characters ({len(text.split())} words).",
            f"Keep it to {MAX_PROMPT_CHARACTERS} characters.",
        )


def shown(value: object) -> str:
    """A wrong value as a message shows it: of a long one, its beginning."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = f"a number of {int(value).bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def as_float(value: int | float) -> float:
    """A JSON number as a float; an integer beyond a float's range becomes infinite, which every range refuses."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def check_prompts(value: object, least: float, most: float) -> None:
    """Raise ControlError unless value is a tuple of at most MAX_PROMPTS prompts with weights from `least` to `most`."""
    if not isinstance(value, tuple) or not all(isinstance(p, WeightedPrompt) for p in value):
        raise ControlError(
            f"prompt must be a tuple of weighted prompts, not {shown(value)}.", "Control.of() also takes plain text."
        )
    if len(value) > MAX_PROMPTS:
        raise ControlError(f"{len(value)} prompts were given.", f"Blend at most {MAX_PROMPTS}.")
    for prompt in value:
        check_length("prompt", prompt.text)
        if prompt.weight <= 0:
            raise ControlError(
                f"The weight {prompt.weight} of {shown(prompt.text)} is not above 0.", "Leave the prompt out instead."
            )
        if not least <= prompt.weight <= most:  # also rejects NaN
            raise ControlError(
                f"The weight of {shown(prompt.text)} cannot be {prompt.weight}.",
                f"Weights are relative: give them from {least:g} to {most:g}.",
            )


def parse_prompts(value: object) -> tuple[WeightedPrompt, ...]:
    """Parse weighted prompts from text, or from a list of texts, (text, weight) pairs or {"text", "weight"} objects.

    In text, prompts are separated by '|', and each may end in ':weight'. 'a cat:2 | a robot' -> cat 2, robot 1.
    """
    if isinstance(value, str):
        return tuple(_parse_one(part) for part in value.split("|")) if value.strip() else ()
    if not isinstance(value, list | tuple):
        raise ControlError(f"prompt must be text or a list of weighted prompts, not {shown(value)}.")
    return tuple(_from_item(item) for item in value)


def _parse_one(part: str) -> WeightedPrompt:
    text, colon, weight = part.rpartition(":")
    if colon:
        try:
            return WeightedPrompt(text=text.strip(), weight=float(weight))
        except ValueError:
            pass  # a colon inside the prompt, not a weight
    return WeightedPrompt(text=part.strip())


def _from_item(item: object) -> WeightedPrompt:
    match item:
        case WeightedPrompt():
            return item
        case str():
            return _parse_one(item)
        case (str() as text, int() | float() as weight):
            return WeightedPrompt(text=text, weight=as_float(weight))
        case {"text": str() as text, "weight": int() | float() as weight}:
            return WeightedPrompt(text=text, weight=as_float(weight))
        case {"text": str() as text}:
            return WeightedPrompt(text=text)
    raise ControlError(
        f"{shown(item)} is not a weighted prompt.", 'Give text, [text, weight] or {"text": ..., "weight": ...}.'
    )
