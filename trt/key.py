"""Owns the key of a plan: everything that determines the files, as strings, its digest, and how two keys differ.

Independent of tensors, recipes and of where plans are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What determines a plan's files. Equal keys mean that the files can be used for one another.

    recipe: its name, as "tensorrt-rtx". part: "denoise", "pass", ... model: its name, for people. weights: the digest
    of the weights that the files contain; "": none, they are given at load. program: the digest of the network's code
    and settings. lora: the LoRA set and how it is applied,
    as "merged style.safetensors@0.8"; "": none. inputs: names, dtypes and shapes of the inputs. precision: of weights,
    activations and products. options: of the compiler. device: its name and compute capability, or the CPU's
    instruction set. driver: its version. libraries: names and versions of those that compile and run the plan.
    """

    recipe: str
    part: str
    model: str
    inputs: str
    weights: str = ""
    program: str = ""
    lora: str = ""
    precision: str = ""
    options: str = ""
    device: str = ""
    driver: str = ""
    libraries: str = ""

    @classmethod
    def with_details(
        cls,
        *,
        recipe: str,
        part: str,
        model: str,
        inputs: str,
        weights: str,
        program: str,
        lora: str,
        details: Mapping[str, str],
    ) -> PlanKey:
        """Return a key with what a recipe says of a part: fields by name; other names become part of `options`."""
        named = {name: value for name, value in details.items() if name in _DETAILS}
        others = [f"{name}={value}" for name, value in sorted(details.items()) if name not in _DETAILS]
        named["options"] = ", ".join(filter(None, [named.get("options", ""), *others]))
        return cls(
            recipe=recipe, part=part, model=model, inputs=inputs, weights=weights, program=program, lora=lora, **named
        )

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> PlanKey:
        """Return the key that `as_fields` gave. Raises ValueError if a name is missing or unknown, or not a string."""
        names = {field.name for field in fields(cls)}
        if set(values) != names or not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"Not the fields of a plan's key: {sorted(values)}")
        return cls(**{name: str(value) for name, value in values.items()})

    def as_fields(self) -> dict[str, str]:
        """Return the fields by name."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """The sha256 of the fields as JSON with sorted names, in hexadecimal."""
        text = json.dumps(self.as_fields(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


_DETAILS = frozenset({"precision", "options", "device", "driver", "libraries"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A field in which a wanted key differs from a stored one."""

    field: str
    stored: str
    wanted: str

    def __str__(self) -> str:
        old, new = _difference(self.stored, self.wanted)
        return f"{self.field}: stored {old}, wanted {new}"


def differences(stored: PlanKey, wanted: PlanKey) -> tuple[Difference, ...]:
    """Return the fields that differ, in the order of the fields."""
    old, new = stored.as_fields(), wanted.as_fields()
    return tuple(Difference(field=name, stored=old[name], wanted=new[name]) for name in old if old[name] != new[name])


def _difference(old: str, new: str) -> tuple[str, str]:
    """Return both values, shortened around the first place where they differ."""
    if max(len(old), len(new)) <= _SHOWN_CHARACTERS:
        return old or "nothing", new or "nothing"
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, same - _SHOWN_CHARACTERS // 4)
    return _part(old, start), _part(new, start)


def _part(value: str, start: int) -> str:
    end = start + _SHOWN_CHARACTERS
    return ("..." * (start > 0) + value[start:end] + "..." * (len(value) > end)) or "nothing"
