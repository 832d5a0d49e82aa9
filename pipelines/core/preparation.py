"""Owns the contract of a preparation: faster forms of an engine's parts that are made while it runs.

Independent of what is prepared and how. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self


class InputForm(NamedTuple):
    """Shape, strides (in elements) and dtype ("float32") of one input of a part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartForm:
    """What a part of an engine runs with: a plan at the shapes of its inputs, or the network as it is.

    part: its name. recipe: what made the plan. plan: its name in the store. files: a digest of the plan's files.
    inputs: those of the plan; another batch runs padded or split. The last four are empty for the network as it is.
    """

    part: str
    recipe: str = ""
    plan: str = ""
    files: str = ""
    inputs: tuple[InputForm, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` returned, also by way of JSON. Raises ValueError if it is something else."""
        try:
            texts = {name: str(values[name]) for name in ("part", "recipe", "plan", "files")}
            inputs = tuple(
                InputForm(name=str(name), dtype=str(dtype), shape=tuple(map(int, shape)), strides=tuple(map(int, step)))
                for name, dtype, shape, step in values["inputs"]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the form of a part: {values}") from error
        return cls(**texts, inputs=inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationStatus:
    """For people: what the parts run with, and what is under way.

    runs: "PyTorch", "int8 (OpenVINO)", or both with the parts that each runs. builds: what is being built; "": nothing.
    percent: how far that is, over all parts, 0 to 99. step: what exactly is done at the moment. failed: why the last
    build or plan was of no use; "": it was.
    """

    runs: str
    builds: str = ""
    percent: int = 0
    step: str = ""
    failed: str = ""

    def __str__(self) -> str:
        parts = [self.runs]
        if self.builds:
            parts.append(f"{self.builds}: building, {self.percent} %" + (f" ({self.step})" if self.step else ""))
        if self.failed:
            parts.append(self.failed)
        return " · ".join(parts)


NOTHING_PREPARED = PreparationStatus(runs="")
"""Of an engine that runs as it was loaded."""


class Preparation(Protocol):
    """Makes compiled parts beside a running engine, which calls `swap` between ticks."""

    @property
    def status(self) -> PreparationStatus:
        """What runs now, and what is under way. The same object until something changes."""
        ...

    @property
    def forms(self) -> tuple[PartForm, ...]:
        """What each prepared part runs with: all its plans in the order of their use, or the network as it is.

        The same object until something changes.
        """
        ...

    def swap(self) -> bool:
        """Put into use what has become ready. True: what the engine calls has changed, so nothing captured is valid.

        Cheap; called before every tick.
        """
        ...

    def prefer(self, name: str, batch: int) -> None:
        """Ask for a form of a part at a size of its batch that ticks have had for a while; until then it is padded.

        Cheap for sizes that were asked for before.
        """
        ...

    def weights_changed(self, lora_scale: float) -> None:
        """Stop using what contains the model's weights: they have just changed, to this scale of the LoRAs."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is under way. False: the time ran out."""
        ...

    def freeze(self) -> bool:
        """Put into use what is stored, however long loading takes, and nothing more later: for renders.

        True: something is not stored, and is built for the next engine.
        """
        ...

    def hold(self) -> None:
        """Run the networks as they are from now on, and nothing else but what `take_over` is given: for replays."""
        ...

    def missing(self, forms: Sequence[PartForm]) -> list[PartForm]:
        """Return those whose plans are not stored, each plan once."""
        ...

    def take_over(self, form: PartForm) -> str:
        """Load a form, which the next `swap` puts into use. Returns a caution for the user, or "".

        Raises ModelError, with the remedy, if the same plan cannot be had.
        """
        ...

    def close(self) -> None:
        """Stop what is under way. What has been stored stays."""
        ...


class NoPreparation:
    """Nothing is prepared: the parts run as they are."""

    status = NOTHING_PREPARED
    forms: tuple[PartForm, ...] = ()

    def swap(self) -> bool:
        """Return False."""
        return False

    def prefer(self, name: str, batch: int) -> None:
        """Do nothing."""

    def weights_changed(self, lora_scale: float) -> None:
        """Do nothing."""

    def wait(self, timeout_s: float) -> bool:
        """Return True."""
        return True

    def freeze(self) -> bool:
        """Return False."""
        return False

    def hold(self) -> None:
        """Do nothing."""

    def missing(self, forms: Sequence[PartForm]) -> list[PartForm]:
        """Return all that are plans."""
        return [form for form in forms if form.plan]

    def take_over(self, form: PartForm) -> str:
        """Accept networks as they are only."""
        assert not form.plan, form
        return ""

    def close(self) -> None:
        """Do nothing."""
