"""Owns an analysis from beginning to end: redundancy, the search for presets, the profile. Independent of files.

Raises what engines raise, InputError for a clip that is too short, ModelError for a model that cannot be analysed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from cache.features.frames import PRESETS, ReuseSettings
from pipelines.core.controls import Control, Controls
from pipelines.core.errors import InputError, ModelError
from pipelines.core.types import Picture
from pipelines.image.cache_profile import CacheProfile, CalibratedPreset
from pipelines.image.engine import ImageEngine
from pipelines.image.step_calibration import measured_profile
from pipelines.image.step_profile import StepProfile

from .calibrate import FLOORS_DB, Trial, axes, chosen, search, verify
from .motion import clip_noise, moving_share, typical_part
from .play import Decision, Played, Progress, Values, decisions, play, psnr_db
from .redundancy import Redundancy, measured, unet_of

LEAST_FRAMES = 8
PART_FRAMES = 24
"""Of the clip, on which candidates are judged."""
_MANY_STEPS = 12
_COMPILING_S = 900.0
_PART_MARGIN_DB = 0.3  # above the floor on the part, so that the whole clip rarely falls below it
_PROMPTS = 4  # renders of the step profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is analysed. control: values by name, beside the model's defaults. made: the command and the day.
    step_profile: measure one if the model has none."""

    control: Values
    made: str
    step_profile: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inside:
    """What repeats inside the network. part: (first, last + 1) frame of the clip that was looked at, and on which
    candidates are judged. live: at the settings of the stream. render: of many steps, of few pictures. step_profile:
    None where the model has its own, or none is wanted."""

    part: tuple[int, int]
    live: Redundancy
    render: Redundancy
    step_profile: StepProfile | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """profile: what a stream loads. frames: of the clip. noise: see `CacheProfile`. moving: [rows, columns], share of
    the frames in which a cell moved. picture: the frame in the middle of the part. trials: of candidates on the part.
    defaults, chosen: by preset, on the whole clip.
    """

    profile: CacheProfile
    frames: int
    noise: float
    inside: Inside
    moving: npt.NDArray[np.float64]
    picture: Picture
    trials: Sequence[Trial]
    defaults: Mapping[str, Trial]
    chosen: Mapping[str, Trial]


def check_clip(frames: int) -> None:
    """Raise InputError for a clip of too few frames."""
    if frames < LEAST_FRAMES:
        raise InputError(
            f"The clip has {frames} frame{'s' * (frames != 1)}, too few to measure what repeats.",
            f"Give a clip of {LEAST_FRAMES} frames or more; two seconds and more are best.",
        )


def look_inside(engine: ImageEngine, pictures: Sequence[Picture], question: Question, progress: Progress) -> Inside:
    """Measure what repeats inside the network. The engine must run by the backend eager; no stream may be open."""
    check_clip(len(pictures))
    unet_of(engine)
    factor, control = engine.core.codec.factor, question.control
    start = typical_part(pictures, PART_FRAMES, factor)
    part = pictures[start : start + PART_FRAMES]
    many = {**control, "step_function": "ddim", "steps": _MANY_STEPS}
    state = Controls().updated(Control.of(engine.core.model.defaults)).updated(Control.of(control))
    return Inside(
        part=(start, start + len(part)),
        live=measured(engine, part, control, progress, "layers from frame to frame"),
        render=measured(engine, part[:2], many, progress, "layers from step to step"),
        step_profile=_step_profile(engine, question.made, state.prompt[0].text, progress)
        if question.step_profile
        else None,
    )


def analyse(
    engine: ImageEngine, pictures: Sequence[Picture], question: Question, inside: Inside, progress: Progress
) -> Analysis:
    """Calibrate a model on a clip: pictures [H, W, 3] uint8 of the engine's size. inside: of the same clip. The engine
    may run by any backend; no stream may be open."""
    if (why := engine.core.windows_obstacle()) is not None:
        raise ModelError(
            f"There is nothing to calibrate: windows are not computed here ({why}).",
            "Choose --backend eager on a CPU, or use the built-in presets.",
        )
    core, control = engine.core, question.control
    factor = core.codec.factor
    noise = clip_noise(pictures, factor)
    start, stop = inside.part
    found = _Search(engine, pictures, pictures[start:stop], control, progress)
    defaults = found.built_in()
    presets = found.presets(noise)
    moving = moving_share(
        pictures,
        factor=factor,
        cell=core.reuse_memory().networks.cell,
        levels=presets["balanced"].settings.levels,
        noise_factor=ReuseSettings().noise_factor,
    )
    return Analysis(
        profile=_profile(engine, question, inside, noise, presets),
        frames=len(pictures),
        noise=noise,
        inside=inside,
        moving=moving,
        picture=pictures[(start + stop) // 2],
        trials=tuple(found.tried.values()),
        defaults=defaults,
        chosen=presets,
    )


class _Search:
    """Candidates on a part of a clip, and on all of it. tried: on the part, by settings."""

    def __init__(
        self,
        engine: ImageEngine,
        pictures: Sequence[Picture],
        part: Sequence[Picture],
        control: Values,
        progress: Progress,
    ) -> None:
        self._engine, self._control, self._progress = engine, control, progress
        progress("preparing the backend", 0, 1)
        for settings in (None, PRESETS["balanced"]):  # asks for what is compiled
            play(engine, part, control, settings)
        if not engine.preparation.wait(_COMPILING_S):
            raise ModelError(
                f"{engine.core.runtime.backend} is still compiling after {_COMPILING_S / 60:.0f} minutes.",
                "Try again, what is ready is stored; or analyse with --backend eager.",
            )
        progress("preparing the backend", 1, 1)
        progress("uncached", 0, 1)
        self._whole = self._referenced(pictures)
        self._part = self._whole
        if len(part) < len(pictures):
            self._part = self._referenced(part)
        progress("uncached", 1, 1)
        self.tried: dict[ReuseSettings, Trial] = {}

    def built_in(self) -> dict[str, Trial]:
        """Return what the built-in presets do to the whole clip."""
        defaults: dict[str, Trial] = {}
        for name, settings in PRESETS.items():
            self._progress("built-in presets", len(defaults), len(PRESETS))
            defaults[name] = self.on_clip(settings)
        self._progress("built-in presets", len(PRESETS), len(PRESETS))
        return defaults

    def on_clip(self, settings: ReuseSettings) -> Trial:
        """Judge settings on the whole clip."""
        return self._judged(self._whole, settings)

    def presets(self, noise: float) -> dict[str, Trial]:
        """Return what was found for each preset, on the whole clip; where nothing is worth its price, exact."""
        tried = axes(noise)
        most = len(FLOORS_DB) * (1 + sum(len(values) for _, values in tried))
        start = PRESETS["balanced"]
        for floor_db in FLOORS_DB.values():
            best = search(start, floor_db + _PART_MARGIN_DB, partial(self._on_part, most=most), tried)
            verify(tuple(self.tried.values()), floor_db, self.on_clip)
            start = best.settings
        self._progress("candidates", most, most)
        exact, known = self.on_clip(PRESETS["exact"]), tuple(self._whole.trials.values())
        return {name: chosen(known, floor_db) or exact for name, floor_db in FLOORS_DB.items()}

    def _on_part(self, settings: ReuseSettings, most: int) -> Trial:
        if settings not in self.tried:
            self._progress("candidates", min(len(self.tried), most), most)
            self.tried[settings] = self._judged(self._part, settings)
        return self.tried[settings]

    def _judged(self, reference: _Reference, settings: ReuseSettings) -> Trial:
        """Play settings, uncached, and settings again: the first run prepares sizes of windows that are new, and the
        other two, one after the other, share whatever else the machine does. Settings that decide alike are played
        once."""
        key = decisions(self._engine, reference.pictures, settings)
        if key not in reference.trials:
            reference.trials[key] = self._new_trial(reference, settings)
        return replace(reference.trials[key], settings=settings)

    def _new_trial(self, reference: _Reference, settings: ReuseSettings) -> Trial:
        _, plain, run = (self._play(reference.pictures, used) for used in (settings, None, settings))
        return Trial(
            settings=settings,
            speed_up=min(plain.seconds / run.seconds, 1 / run.counts.computed),  # more is noise of the clock
            psnr_db=psnr_db(run.outputs, reference.outputs),
            computed=run.counts.computed,
            hit_rate=run.counts.hit_rate,
        )

    def _referenced(self, pictures: Sequence[Picture]) -> _Reference:
        return _Reference(pictures, self._play(pictures, None).outputs)

    def _play(self, pictures: Sequence[Picture], settings: ReuseSettings | None) -> Played:
        return play(self._engine, pictures, self._control, settings)


@dataclass(frozen=True, slots=True)
class _Reference:
    """Pictures, and what their uncached run made of them. trials: so far, by what is done with each frame."""

    pictures: Sequence[Picture]
    outputs: Sequence[Picture]
    trials: dict[tuple[Decision, ...], Trial] = field(default_factory=dict)


def _profile(
    engine: ImageEngine, question: Question, inside: Inside, noise: float, presets: Mapping[str, Trial]
) -> CacheProfile:
    core = engine.core
    model = core.model
    state = Controls().updated(Control.of(model.defaults)).updated(Control.of(question.control))
    return CacheProfile(
        model=model.name,
        weights=model.weights(),
        made=question.made,
        width=core.width,
        height=core.height,
        steps=state.steps,
        strength=state.strength,
        backend=core.runtime.backend,
        noise=round(noise, 3),
        presets={name: _preset(trial, FLOORS_DB[name]) for name, trial in presets.items()},
        step_profile=inside.step_profile,
    )


def _preset(trial: Trial, floor_db: float) -> CalibratedPreset:
    return CalibratedPreset(
        settings=trial.settings,
        speed_up=round(trial.speed_up, 3),
        psnr_db=round(trial.psnr_db, 2) if math.isfinite(trial.psnr_db) else None,
        computed=round(trial.computed, 4),
        floor_db=floor_db,
    )


def _step_profile(engine: ImageEngine, made: str, prompt: str, progress: Progress) -> StepProfile | None:
    """Return a step profile for a model that has none, or one of other weights; None: its own serves."""
    model = engine.core.model
    try:
        if model.load_profile() is not None:
            return None
    except ModelError:
        pass  # of other weights: the new one replaces it
    progress("step profile", 0, 1)
    found = measured_profile(model, [prompt] * _PROMPTS, weights=model.weights(), made=made)
    progress("step profile", 1, 1)
    return found
