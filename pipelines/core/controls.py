"""Changes and states of a stream's controls, checked against the control table.

`Control` is a partial change, `Controls` a complete state. Knows no engine and no widget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from .control_table import CONTROLS, ControlSpec, EngineKind, Propagation
from .errors import ControlError

MAX_PROMPT_CHARACTERS = 2000
MAX_PROMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPrompt:
    """A text and its weight (> 0, relative to the other prompts of the same blend)."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A partial change: only fields that are not None change anything. Names and types are the table's (tested)."""

    prompt: tuple[WeightedPrompt, ...] | None = None
    negative_prompt: str | None = None
    prompt_change: str | None = None
    prompt_blend: str | None = None
    transition_frames: int | None = None
    guidance_mode: str | None = None
    guidance_scale: float | None = None
    guidance_delta: float | None = None
    step_function: str | None = None
    strength: float | None = None
    steps: int | None = None
    depth: int | None = None
    seed: int | None = None
    seed_lock: bool | None = None
    noise_walk_deg: float | None = None
    lora_scale: float | None = None
    similarity_filter: bool | None = None
    similarity_threshold: float | None = None
    similarity_max_skips: int | None = None
    chunk_frames: int | None = None
    first_chunk_frames: int | None = None
    chunk_steps: int | None = None
    noise_control: bool | None = None
    input_use: str | None = None
    scene_cut: bool | None = None
    rewind_to: int | None = None
    camera_x: float | None = None
    camera_y: float | None = None
    camera_zoom: float | None = None
    push_x: float | None = None
    push_y: float | None = None
    paused: bool | None = None
    model: str | None = None
    width: int | None = None
    height: int | None = None
    frames_per_slot: int | None = None
    kv_policy: str | None = None
    window_frames: int | None = None
    sink_frames: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.changes().items():
            check_value(CONTROLS[name], value)

    def changes(self) -> dict[str, object]:
        """The fields that are set."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Control:
        """From plain values (a JSON object, a command line): prompts may be text such as 'a cat:2 | a robot'.

        Raises ControlError for an unknown name, a wrong type or a value out of range.
        """
        known: dict[str, object] = {}
        for name, value in values.items():
            if name not in CONTROLS:
                raise ControlError(f"There is no control named {name!r}.", f"Known controls: {', '.join(CONTROLS)}.")
            spec = CONTROLS[name]
            if spec.kind == "prompts":
                value = parse_prompts(value)
            elif spec.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            elif spec.kind == "int" and isinstance(value, float) and value.is_integer():
                value = int(value)  # JSON knows one kind of number: 3.0 is a whole one
            known[name] = value
        return cls(**known)  # type: ignore[arg-type]  # checked field by field in __post_init__


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """A complete state of all controls of a stream."""

    values: Mapping[str, object] = field(
        default_factory=lambda: MappingProxyType({n: s.default for n, s in CONTROLS.items()})
    )

    def updated(self, control: Control) -> Controls:
        """This state with the change applied."""
        return replace(self, values=MappingProxyType({**self.values, **control.changes()}))

    def number(self, name: str) -> float:
        """A control of kind float or int."""
        value = self.values[name]
        assert isinstance(value, int | float), name
        return float(value)

    def integer(self, name: str) -> int:
        """A control of kind int."""
        value = self.values[name]
        assert isinstance(value, int), name
        return value

    def flag(self, name: str) -> bool:
        """A control of kind bool."""
        value = self.values[name]
        assert isinstance(value, bool), name
        return value

    def text(self, name: str) -> str:
        """A control of kind text or choice."""
        value = self.values[name]
        assert isinstance(value, str), name
        return value

    @property
    def prompts(self) -> tuple[WeightedPrompt, ...]:
        """The weighted prompts."""
        value = self.values["prompt"]
        assert isinstance(value, tuple)
        return value


def check_value(spec: ControlSpec, value: object) -> None:
    """Raise ControlError, with the value and the remedy, when `value` does not fit `spec`."""
    if spec.kind == "prompts":
        _check_prompts(value)
    elif spec.kind == "text":
        if not isinstance(value, str):
            raise ControlError(f"{spec.name} must be text, not {value!r}.")
        _check_length(spec.name, value)
    elif spec.kind == "choice":
        if value not in spec.choices:
            raise ControlError(f"{spec.name} cannot be {value!r}.", f"Choose one of: {', '.join(spec.choices)}.")
    elif spec.kind == "bool":
        if not isinstance(value, bool):
            raise ControlError(f"{spec.name} must be true or false, not {value!r}.")
    else:
        _check_number(spec, value)


def _check_number(spec: ControlSpec, value: object) -> None:
    wanted = int if spec.kind == "int" else (int, float)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isinstance(value, wanted):
        raise ControlError(
            f"{spec.name} must be a {'whole number' if spec.kind == 'int' else 'number'}, not {value!r}."
        )
    assert spec.minimum is not None
    assert spec.maximum is not None
    if not spec.minimum <= value <= spec.maximum:  # also refuses NaN
        raise ControlError(
            f"{spec.name} cannot be {value}.", f"Give a value from {spec.minimum:g} to {spec.maximum:g}."
        )


def _check_length(name: str, text: str) -> None:
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ControlError(
            f"{name} has {len(text)} characters ({len(text.split())} words).",
            f"Keep it to {MAX_PROMPT_CHARACTERS} characters.",
        )


def _check_prompts(value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(p, WeightedPrompt) for p in value):
        raise ControlError(
            f"prompt must be a tuple of weighted prompts, not {value!r}.", "Control.of() also takes plain text."
        )
    if len(value) > MAX_PROMPTS:
        raise ControlError(f"{len(value)} prompts were given.", f"Blend at most {MAX_PROMPTS}.")
    for prompt in value:
        _check_length("prompt", prompt.text)
        if not 0 < prompt.weight < float("inf"):
            raise ControlError(
                f"The weight {prompt.weight} of {prompt.text!r} is not above 0.", "Leave the prompt out instead."
            )


def parse_prompts(value: object) -> tuple[WeightedPrompt, ...]:
    """Weighted prompts from text, or from a list of texts, (text, weight) pairs or {"text", "weight"} objects.

    Text: prompts are separated by '|', each may end in ':weight'. 'a cat:2 | a robot' -> cat 2, robot 1.
    """
    if isinstance(value, str):
        return tuple(_parse_one(part) for part in value.split("|")) if value.strip() else ()
    if not isinstance(value, list | tuple):
        raise ControlError(f"prompt must be text or a list of weighted prompts, not {value!r}.")
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
            return WeightedPrompt(text=text, weight=float(weight))
        case {"text": str() as text, "weight": int() | float() as weight}:
            return WeightedPrompt(text=text, weight=float(weight))
        case {"text": str() as text}:
            return WeightedPrompt(text=text)
    raise ControlError(
        f"{item!r} is not a weighted prompt.", 'Give text, [text, weight] or {"text": ..., "weight": ...}.'
    )


_NOUNS: Mapping[EngineKind, str] = {"image": "an image model", "video": "a video model"}


def changeable(current: Controls, control: Control, *, engine: EngineKind) -> Controls:
    """`current` with `control` applied, after a check that nothing changes which cannot in an open stream of `engine`.

    Raises ControlError for a new value of the class *reopen*, and of a control that means nothing to this engine.
    """
    fixed = {n: current.values[n] for n, spec in CONTROLS.items() if spec.propagation is Propagation.REOPEN}
    for name, value in control.changes().items():
        if name in fixed and value not in (fixed[name], 0):
            raise ControlError(
                f"{name} cannot become {value!r} in an open stream (it is {fixed[name]!r}).",
                "Load the engine again with that value.",
            )
        if name not in fixed and engine not in CONTROLS[name].engines and value != current.values[name]:
            raise ControlError(
                f"{name} means nothing to {_NOUNS[engine]}.", f"It is a control of {_NOUNS[CONTROLS[name].engines[0]]}."
            )
    return current.updated(control).updated(Control.of(fixed))
