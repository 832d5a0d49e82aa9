"""Owns what an analysis says in plain words: which preset to choose, and why. Independent of how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.image.analysis.analysis import Analysis
from pipelines.image.analysis.calibrate import FLOORS_DB

_PAYS = 1.05  # times as fast, below which reuse is not worth its price
_GAINS = 1.10  # of fastest over balanced
_ALIKE = 0.2  # relative change of the output from step to step, below which step caches pay
_SEEN = (
    (45.0, "which nobody will see"),
    (38.0, "which is hard to see even side by side"),
    (32.0, "which shows side by side, hardly in motion"),
    (28.0, "which shows in motion as slightly late or soft edges"),
    (-math.inf, "which is plain to see"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """preset: exact, balanced or fastest. sentences: why, for people."""

    preset: str
    sentences: tuple[str, ...]


def decibels(psnr_db: float) -> str:
    """Return "33.1 dB from uncached", or that nothing differs."""
    return "the same pictures" if math.isinf(psnr_db) else f"{psnr_db:.1f} dB against uncached"


def advice(found: Analysis) -> Advice:
    """Return what to choose for the clip that was analysed."""
    balanced, fastest = found.chosen["balanced"], found.chosen["fastest"]
    told = []
    if max(balanced.speed_up, fastest.speed_up) < _PAYS or (balanced.settings.exact and fastest.settings.exact):
        preset = "exact"
        told.append(
            "Choose exact, or leave reuse off. On this clip and with this backend, taking over parts of earlier frames "
            "saves no time within the floors of fidelity; exact costs nothing and helps when the input pauses."
        )
    elif balanced.settings.exact or balanced.speed_up < _PAYS:
        preset = "fastest"
        told.append(
            f"Choose fastest if speed matters: {fastest.speed_up:.1f} times as fast, {decibels(fastest.psnr_db)}, "
            f"{_seen(fastest.psnr_db)}. Within {FLOORS_DB['balanced']:g} dB nothing is gained on this clip."
        )
    else:
        preset = "balanced"
        told.append(
            f"Start with balanced: {balanced.speed_up:.1f} times as fast, {decibels(balanced.psnr_db)}, "
            f"{_seen(balanced.psnr_db)}."
        )
        if fastest.speed_up >= _GAINS * balanced.speed_up:
            told.append(
                f"Choose fastest where speed matters more: {fastest.speed_up:.1f} times as fast, "
                f"{decibels(fastest.psnr_db)}, {_seen(fastest.psnr_db)}."
            )
        else:
            told.append("On this clip fastest gains hardly anything over balanced.")
    told.append(_step_to_step(found))
    told.append("Clips that move otherwise than this one come out otherwise: analyse one of each kind that you stream.")
    return Advice(preset=preset, sentences=tuple(told))


def _seen(psnr_db: float) -> str:
    return next(text for least, text in _SEEN if psnr_db >= least)


def _step_to_step(found: Analysis) -> str:
    change = float(np.median(found.inside.render.steps[-1]))
    told = f"In renders of many steps the network's output changes by {100 * change:.0f} % from one step to the next, "
    if change < _ALIKE:
        return f"{told}so a step cache pays there: --step-cache taylorseer."
    return f"{told}so a step cache will cost much there."
