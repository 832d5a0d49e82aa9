"""Owns the cache profile of an image model: what `zoetrope analyse` calibrated on a user's clip, as a small JSON file.

It holds settings for the presets of the control `reuse` and, for a model that came without one, a step profile. An
engine of other weights or of another size refuses it. Independent of engines and of how it was measured:
pipelines/image/analysis/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_type_hints

from cache.features.frames import PRESETS, ReuseSettings
from pipelines.core.errors import InputError, ModelError

from .step_profile import StepProfile

if TYPE_CHECKING:
    from .model import ImageModel

FORMAT = "zoetrope-cache-profile/1"
CALIBRATED = ("balanced", "fastest")
"""The presets that a profile has settings for; `exact` has none to calibrate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedPreset:
    """settings: of one preset. speed_up: uncached time over its own, on the clip. psnr_db: against the uncached run,
    over the clip; None: equal. computed: share of the picture's cells that were computed. floor_db: what was asked for.
    """

    settings: ReuseSettings
    speed_up: float
    psnr_db: float | None
    computed: float
    floor_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheProfile:
    """model: its name. weights: SHA-256 of the denoiser's weight files, as in its step profile. made: the command and
    the day. width, height: pixels. steps, strength, backend: what was running. noise: of the clip, the deviation of a
    latent's mean from frame to frame in levels. presets: by name, those of CALIBRATED. step_profile: None where the
    model has its own.
    """

    model: str
    weights: str
    made: str
    width: int
    height: int
    steps: int
    strength: float
    backend: str
    noise: float
    presets: Mapping[str, CalibratedPreset]
    step_profile: StepProfile | None = None

    def all_presets(self) -> dict[str, ReuseSettings]:
        """Return the settings of every preset of the control `reuse`."""
        return {**PRESETS, **{name: preset.settings for name, preset in self.presets.items()}}

    def adapted(self, model: ImageModel, size: tuple[int, int]) -> ImageModel:
        """Return a model with the profile's own step profile, if it has one. size: (width, height) of the engine.

        Raises ModelError if the profile was made for other weights or another size.
        """
        self.check(model.name, model.weights(), size)
        own = self.step_profile
        return model if own is None else replace(model, load_profile=lambda: own)

    def check(self, model: str, weights: str, size: tuple[int, int]) -> None:
        """Raise ModelError, with the remedy, if it was made for other weights or another size."""
        again = f"zoetrope analyse {model} CLIP --size {size[0]}x{size[1]}"
        if weights != self.weights:
            raise ModelError(
                f"The cache profile was made for other weights ({self.model}), not for those of {model}.",
                f"Make a new one: {again}, or omit --cache-profile.",
            )
        if size != (self.width, self.height):
            raise ModelError(
                f"The cache profile was made at {self.width}x{self.height}, and {model} runs at {size[0]}x{size[1]}.",
                f"Make one for that size: {again}, run at --size {self.width}x{self.height}, or omit --cache-profile.",
            )

    def text(self) -> str:
        """Return it as JSON."""
        own = None if self.step_profile is None else self.step_profile.record()
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        presets = {name: asdict(preset) for name, preset in self.presets.items()}
        return json.dumps({"format": FORMAT, **record, "presets": presets, "step_profile": own}, indent=1) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a file that holds `text`. Raises InputError, with the remedy, for anything else."""
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise ValueError("another format")
            presets = {name: _preset(record) for name, record in found.pop("presets").items()}
            if sorted(presets) != sorted(CALIBRATED):
                raise ValueError(f"presets are {', '.join(presets)}")
            steps = found.pop("step_profile")
            _check_types(cls, found)
            return cls(**found, presets=presets, step_profile=None if steps is None else StepProfile.of(steps))
        except FileNotFoundError as error:
            raise InputError(
                f"There is no cache profile {file}.", "Check the spelling, or make one: zoetrope analyse."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} cannot be read as a cache profile ({error}).", "Make it again: zoetrope analyse MODEL CLIP."
            ) from error


_RANGES: Mapping[str, tuple[float, float]] = {
    "levels": (0, 255),
    "noise_factor": (0, 255),
    "margin": (0, 64),
    "most_cells": (0, 1),
    "most_windows": (1, 64),
    "refresh_frames": (0, 2**31),
    "store_frames": (1, 2**31),
    "oldest_frames": (1, 2**31),
}


def _preset(record: Mapping[str, Any]) -> CalibratedPreset:
    given = dict(record["settings"])
    lists = {name: tuple(map(float, value)) for name, value in given.items() if isinstance(value, list)}
    settings = ReuseSettings(**{**given, **lists})
    _check_types(ReuseSettings, {name: value for name, value in given.items() if name not in lists})
    for name, (least, most) in _RANGES.items():
        if not least <= getattr(settings, name) <= most:
            raise ValueError(f"{name} is {getattr(settings, name)}")
    own = {name: value for name, value in record.items() if name != "settings"}
    _check_types(CalibratedPreset, {name: value for name, value in own.items() if value is not None})
    return CalibratedPreset(settings=settings, **own)


def _check_types(kind: type, values: Mapping[str, object]) -> None:
    """Raise TypeError for a plain value whose type is not that of the field."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        wanted = hints.get(name)
        if wanted not in (float, int, str, bool):
            continue
        fits = type(value) in (int, float) if wanted is float else type(value) is wanted
        if not fits:
            raise TypeError(f"{name} is {value!r}")
