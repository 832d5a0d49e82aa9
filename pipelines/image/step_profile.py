"""Owns the profile of a model for caching across steps: what was measured on uncached renders, as a small JSON file.

Made by pipelines/image/step_calibration.py, read beside the model's weights; a model whose weights have changed refuses
it. Independent of engines and of what the numbers are used for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pipelines.core.errors import ModelError

PROFILE_FILE = "step_profile.json"
FORMAT = "zoetrope-step-profile/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What reusing the predicted noise of one calibrated step at a later one costs, and the corrections that fit best.

    change: mean |difference| of the velocity there. error: the same, relative to the true velocity. a, b: of the noise,
    by channel, least squares. factor: one for all channels; bias: by channel, what is left then.
    """

    change: float
    error: float
    a: tuple[float, ...]
    b: tuple[float, ...]
    factor: float
    bias: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """model: its name. weights: SHA-256 of the denoiser's weight files. made: the command. timesteps: the calibrated
    steps, noisiest first. pairs: [T][gaps], pairs[i][g] of step i with step i - 1 - g, as many as there are. ratios:
    [T], magnitudes of neighbouring outputs. polynomial: from relative changes of latents to those of outputs, highest
    power first. router: [T][2], whether the output, and the feature below `router_branch`, are computed; empty: not
    trained.
    """

    model: str
    weights: str
    made: str
    timesteps: tuple[int, ...]
    pairs: tuple[tuple[Pair, ...], ...]
    ratios: tuple[float, ...]
    polynomial: tuple[float, ...]
    router: tuple[tuple[bool, bool], ...] = ()
    router_branch: int = 0

    def nearest(self, timestep: int) -> int:
        """Return the calibrated step whose timestep is nearest; of two the earlier one."""
        return min(range(len(self.timesteps)), key=lambda k: abs(self.timesteps[k] - timestep))

    def pair(self, timestep: int, cached: int) -> Pair | None:
        """Return the calibrated pair nearest to (step, step whose output is reused), given as timesteps; None where
        both are nearest to the same step. The longest gap stands in for longer ones."""
        now, then = self.nearest(timestep), self.nearest(cached)
        own = self.pairs[now]
        return own[min(now - then, len(own)) - 1] if now > then else None

    def check(self, weights: str) -> None:
        """Raise ModelError if it was made for other weights."""
        if weights != self.weights:
            raise ModelError(
                f"The step profile of {self.model} was made for other weights.",
                "Make it again: python -m bench.step_caches --calibrate, or choose a step cache that needs none.",
            )

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(self.record(), separators=(",", ":")) + "\n", encoding="utf-8")

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return what `record` described. Raises ValueError, KeyError or TypeError for anything else."""
        found = dict(record)
        if found.pop("format") != FORMAT:
            raise ValueError("another format")
        pairs = tuple(tuple(_pair(pair) for pair in row) for row in found.pop("pairs"))
        router = tuple((bool(output), bool(deep)) for output, deep in found.pop("router"))
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists, "pairs": pairs, "router": router})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote. Raises ModelError for anything else."""
        try:
            return cls.of(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{file.name} cannot be read as a step profile ({error}).",
                "Make it again: python -m bench.step_caches --calibrate.",
            ) from error


def weights_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of weight files, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _pair(found: dict[str, Any]) -> Pair:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else float(value) for name, value in found.items()
    }
    return Pair(**values)
