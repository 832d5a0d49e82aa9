"""The control table and its records: names agree, and invalid values give a message with a remedy."""

from __future__ import annotations

import pytest

from pipelines.core.control_table import CONTROLS
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import ControlError
from pipelines.core.prompts import WeightedPrompt, parse_prompts


def test_record_and_table_have_the_same_names_in_the_same_order() -> None:
    every = {name: spec.default for name, spec in CONTROLS.items()}
    assert list(Control(**dict(reversed(every.items()))).changes()) == list(CONTROLS) == list(Controls().values)
    assert all(getattr(Control, name) is spec and spec.name == name for name, spec in CONTROLS.items())
    assert {name: getattr(Controls(), name) for name in CONTROLS} == every
    assert {name: getattr(Control(), name) for name in CONTROLS} == dict.fromkeys(CONTROLS)


def test_every_default_passes_its_own_check() -> None:
    Control(**{name: spec.default for name, spec in CONTROLS.items()})


def test_a_partial_change_leaves_the_rest() -> None:
    before = Controls()
    after = before.updated(Control(strength=0.7))
    assert after.strength == 0.7
    assert {k: v for k, v in after.values.items() if k != "strength"} == {
        k: v for k, v in before.values.items() if k != "strength"
    }


def test_a_whole_number_may_be_written_as_a_float() -> None:
    assert Control.of({"steps": 3.0}) == Control(steps=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("a cat", (WeightedPrompt(text="a cat"),)),
        ("a cat:2 | a robot", (WeightedPrompt(text="a cat", weight=2.0), WeightedPrompt(text="a robot"))),
        ("time 12:30pm", (WeightedPrompt(text="time 12:30pm"),)),
        ([["a cat", 2]], (WeightedPrompt(text="a cat", weight=2.0),)),
        (
            [{"text": "x", "weight": 0.5}, {"text": "y"}],
            (WeightedPrompt(text="x", weight=0.5), WeightedPrompt(text="y")),
        ),
    ],
)
def test_prompts_are_parsed(text: object, expected: tuple[WeightedPrompt, ...]) -> None:
    assert parse_prompts(text) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strengh": 1.0}, "no control named 'strengh'"),
        ({"strength": 2.0}, "strength cannot be 2.0. Give a value from 0.02 to 1."),
        ({"strength": float("nan")}, "strength cannot be nan"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"guidance_mode": "half"}, "Choose one of: none, full, self, onetime"),
        ({"prompt": "a:0"}, "is not above 0"),
        ({"prompt": "word " * 10_000}, "49999 characters (10000 words). Keep it to 2000 characters."),
        ({"negative_prompt": "word " * 10_000}, "(10000 words)"),
        ({"prompt": "|".join("abcdefghi")}, "9 prompts were given. Blend at most 8."),
        (
            {"prompt": "a:1e308 | b:1e308"},
            "weight of 'a' cannot be 1e+308. Weights are relative: give them from 0.0001 to",
        ),
        ({"prompt": [["a", 1e-320]]}, "weight of 'a' cannot be 1e-320"),
        ({"prompt": [{"text": "a", "weight": 10**400}]}, "weight of 'a' cannot be inf"),
        ({"prompt": "a:nan"}, "weight of 'a' cannot be nan"),
        ({"prompt": "a:-inf"}, "is not above 0"),
        ({"strength": 10**400}, "strength cannot be inf. Give a value from 0.02 to 1."),
        ({"strength": -(10**5000)}, "strength cannot be -inf"),
        ({"seed": 10**400}, "seed cannot be 1000"),
        ({"seed": 10**5000}, "seed cannot be a number of 16610 bits. Give a value from 0 to"),
        ({"seed": 1e300}, "seed cannot be 1000"),
        ({"guidance_mode": "x" * 10_000}, "…. Choose one of"),
        ({"x" * 10_000: 1}, "…. Known controls"),
    ],
)
def test_bad_values_say_what_to_do(values: dict[str, object], message: str) -> None:
    with pytest.raises(ControlError) as caught:
        Control.of(values)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_every_control_that_is_a_number_or_weighs_has_finite_bounds_that_add_up() -> None:
    for spec in CONTROLS.values():
        if spec.kind in ("float", "int", "prompts"):
            assert spec.minimum is not None
            assert spec.maximum is not None
            assert -(2**53) < spec.minimum < spec.maximum < 2**53
    heaviest = parse_prompts(f"a:{CONTROLS['prompt'].maximum} | b:{CONTROLS['prompt'].minimum} | c:0.5")
    assert Control(prompt=heaviest).prompt == heaviest
