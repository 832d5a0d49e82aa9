"""Owns the search for the settings of a preset: as fast as possible above a floor of fidelity on a clip.

One setting after the other, each tried at a few values beside what the others are by then. Independent of engines: a
judge tells what settings do to the clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from cache.features.frames import ReuseSettings

FLOORS_DB: Mapping[str, float] = MappingProxyType({"balanced": 32.0, "fastest": 28.0})
"""Against the uncached run, over the clip. By preset, the strictest first."""
_LEAST_LEVELS, _MOST_LEVELS = 2.0, 16.0
_NOISES = 4.0  # deviations of the noise that the least threshold is above
_SPREAD = (1.0, 1.5, 2.0, 3.0)
_WORTHWHILE = 1.03  # times as fast, below which settings stay as they are: less is not measured reliably


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What settings do to a clip. speed_up: uncached time over their own. psnr_db: against the uncached run. computed:
    share of the picture's cells that were computed. hit_rate: share of the frames that took over anything."""

    settings: ReuseSettings
    speed_up: float
    psnr_db: float
    computed: float
    hit_rate: float


Judge: TypeAlias = Callable[[ReuseSettings], Trial]
Axes: TypeAlias = Sequence[tuple[str, Sequence[float]]]
"""Settings by name in the order in which they are tried, with their values."""


def threshold_levels(noise: float) -> tuple[float, ...]:
    """Return thresholds of motion to try on a clip: from 4 deviations of its noise (levels), at least 2, upwards."""
    least = max(_LEAST_LEVELS, _NOISES * noise)
    return tuple(sorted({min(_MOST_LEVELS, round(least * factor, 1)) for factor in _SPREAD}))


def axes(noise: float) -> Axes:
    """Return what is tried on a clip of that noise (levels)."""
    return (
        ("levels", threshold_levels(noise)),
        ("margin", (1, 2, 4)),
        ("store_frames", (4, 8, 16, 32)),
        ("refresh_frames", (3, 7, 15)),
        ("most_cells", (0.45, 0.6, 0.75)),
    )


def better(trials: Sequence[Trial], floor_db: float) -> Trial:
    """Return the fastest trial that reaches the floor; of those nearly as fast as it, the first. If none reaches it,
    the nearest to it."""
    reaching = [trial for trial in trials if trial.psnr_db >= floor_db]
    if not reaching:
        return max(trials, key=lambda trial: trial.psnr_db)
    fastest = max(trial.speed_up for trial in reaching)
    return next(trial for trial in reaching if trial.speed_up * _WORTHWHILE >= fastest)


def search(start: ReuseSettings, floor_db: float, judge: Judge, tried: Axes) -> Trial:
    """Return the best trial found from `start`."""
    best = judge(start)
    for name, values in tried:
        others = [_with(best.settings, name, value) for value in values]
        best = better([best, *(judge(settings) for settings in others if settings != best.settings)], floor_db)
    return best


def _with(settings: ReuseSettings, name: str, value: float) -> ReuseSettings:
    changed: dict[str, Any] = {name: value}
    return replace(settings, **changed)


def verify(trials: Sequence[Trial], floor_db: float, judge: Judge, *, most: int = 4) -> None:
    """Judge the fastest settings that reach the floor on the whole clip, until they reach it there too and are worth
    it. trials: of a part of the clip. judge: on the whole clip. most: how many are judged."""
    reaching = sorted((trial for trial in trials if trial.psnr_db >= floor_db), key=lambda trial: -trial.speed_up)
    for candidate in _spread(reaching, most):
        if _worthwhile(judge(candidate.settings), floor_db):
            return


def chosen(trials: Sequence[Trial], floor_db: float) -> Trial | None:
    """Return the fastest of the whole clip's trials that reaches the floor; None if none is worth its price."""
    worthwhile = [trial for trial in trials if _worthwhile(trial, floor_db)]
    return max(worthwhile, key=lambda trial: trial.speed_up, default=None)


def _worthwhile(trial: Trial, floor_db: float) -> bool:
    return trial.psnr_db >= floor_db and trial.speed_up >= _WORTHWHILE


def _spread(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return the fastest trial, and then in turn the fastest of those that are clearly more faithful."""
    chosen: list[Trial] = []
    for trial in trials:
        if len(chosen) == most:
            break
        if not chosen or trial.psnr_db > chosen[-1].psnr_db + 0.3 or math.isinf(trial.psnr_db):
            chosen.append(trial)
    return chosen
