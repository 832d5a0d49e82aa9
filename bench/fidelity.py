"""Owns the scores of one run against its uncached reference, beside the floors that make them readable.

`scores(outputs, reference, inputs)`; a `Judge` does the same for many runs from the same inputs and measures inputs and
reference once. Every figure of stability is given for the run, for the reference, for the input itself and for the
frame held: what flickers less than its reference may only be stuck. Independent of caches, engines and clips.
Formulas: bench/picture_fidelity.py, bench/temporal_fidelity.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.picture_fidelity import decibels, gmsd, mean_squared_error, ms_ssim
from bench.temporal_fidelity import (
    DeltaFidelity,
    InputMotion,
    delta_fidelity,
    flicker,
    flow_error_px,
    high_share,
    measure_motion,
    warp_error,
)
from pipelines.core.types import Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How near a run is to its reference, frame by frame.

    psnr_db: of the mean squared error over the whole clip; worst_frame_db and worst_second_db: of its worst frame and
    its worst second (any, not only whole ones); infinite where nothing differs. ms_ssim and gmsd: means over the
    frames, and the worst frame's. equal_share: share of frames that equal the reference exactly. delta: of the changes
    from frame to frame.
    """

    psnr_db: float
    worst_frame_db: float
    worst_second_db: float
    ms_ssim: float
    worst_ms_ssim: float
    gmsd: float
    worst_gmsd: float
    equal_share: float
    delta: DeltaFidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How steady a run is, given how the input moved: see bench.temporal_fidelity. NaN: nothing to measure on."""

    warp_error: float
    flow_error_px: float
    flicker: float
    high_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One run of a clip.

    fidelity: to the reference. held_fidelity: that of the frame held, which any cache must beat. outputs, reference,
    inputs, held: stability of the run and of its floors. visible_share: share of pixels with a warp error;
    static_share: share of those with a flicker.
    """

    frames: int
    fps: float
    fidelity: Fidelity
    held_fidelity: Fidelity
    outputs: Stability
    reference: Stability
    inputs: Stability
    held: Stability
    visible_share: float
    static_share: float

    def record(self) -> dict[str, Any]:
        """For JSON: rounded; null for what is infinite (nothing differs) or was not measured."""
        found = _finite(asdict(self))
        assert isinstance(found, dict)
        return found


class Judge:
    """Scores runs of one clip. inputs and reference: the clip and the uncached run's outputs, output i made from input
    i; fps: frames of a second, for the worst second; cuts: frames that do not continue the one before.

    Raises ValueError if lengths or sizes differ, for fewer than two frames, or sides below 32 px.
    """

    def __init__(
        self, inputs: Sequence[Picture], reference: Sequence[Picture], *, fps: float = 24.0, cuts: Collection[int] = ()
    ) -> None:
        if len(inputs) != len(reference) or fps <= 0:
            raise ValueError(f"{len(inputs)} inputs, {len(reference)} of the reference at {fps} FPS: give as many")
        self._reference, self._fps = reference, fps
        self.motion: InputMotion = measure_motion(inputs, cuts)
        if inputs[0].shape != reference[0].shape:
            raise ValueError(f"inputs are {inputs[0].shape}, outputs {reference[0].shape}: give one size")
        self._stable_inputs = stability(inputs, self.motion)
        self._stable_reference = stability(reference, self.motion)
        self._held: dict[tuple[int, ...], tuple[Fidelity, Stability]] = {}

    def scores(self, outputs: Sequence[Picture], *, full: Sequence[int] = (0,)) -> Scores:
        """Scores of a run. full: frames that were computed in full, of which "hold the frame" shows the last one again.

        Raises ValueError if there are not as many outputs as inputs, or frame 0 is not in `full`.
        """
        if len(outputs) != len(self._reference):
            raise ValueError(f"{len(outputs)} outputs for {len(self._reference)} inputs: give as many")
        held_fidelity, held_stability = self._hold(tuple(full))
        return Scores(
            frames=len(outputs),
            fps=self._fps,
            fidelity=fidelity(outputs, self._reference, fps=self._fps),
            held_fidelity=held_fidelity,
            outputs=stability(outputs, self.motion),
            reference=self._stable_reference,
            inputs=self._stable_inputs,
            held=held_stability,
            visible_share=self.motion.visible_share,
            static_share=self.motion.static_share,
        )

    def _hold(self, full: tuple[int, ...]) -> tuple[Fidelity, Stability]:
        if full not in self._held:
            frames = hold(self._reference, full)
            self._held[full] = fidelity(frames, self._reference, fps=self._fps), stability(frames, self.motion)
        return self._held[full]


def scores(
    outputs: Sequence[Picture],
    reference: Sequence[Picture],
    inputs: Sequence[Picture],
    *,
    fps: float = 24.0,
    cuts: Collection[int] = (),
    full: Sequence[int] = (0,),
) -> Scores:
    """Scores of one run; see `Judge`. All sequences: uint8 RGB [H, W, 3] of one size and length."""
    return Judge(inputs, reference, fps=fps, cuts=cuts).scores(outputs, full=full)


def hold(reference: Sequence[Picture], full: Sequence[int] = (0,)) -> list[Picture]:
    """The reference with every frame replaced by the last one in `full`. Raises ValueError if frame 0 is not in it."""
    computed = {*full}
    if 0 not in computed:
        raise ValueError(f"full={sorted(computed)[:4]}: the first frame is always computed")
    held: list[Picture] = []
    for number, frame in enumerate(reference):
        held.append(frame if number in computed else held[-1])
    return held


def fidelity(outputs: Sequence[Picture], reference: Sequence[Picture], *, fps: float = 24.0) -> Fidelity:
    """Fidelity of a run of at least two frames."""
    squared = np.array([mean_squared_error(a, b) for a, b in zip(outputs, reference, strict=True)])
    same = [bool(error == 0) for error in squared]
    similar = [1.0 if s else ms_ssim(a, b) for s, a, b in zip(same, outputs, reference, strict=True)]
    uneven = [0.0 if s else gmsd(a, b) for s, a, b in zip(same, outputs, reference, strict=True)]
    return Fidelity(
        psnr_db=decibels(float(squared.mean())),
        worst_frame_db=decibels(float(squared.max())),
        worst_second_db=decibels(worst_mean(squared, round(fps))),
        ms_ssim=float(np.mean(similar)),
        worst_ms_ssim=min(similar),
        gmsd=float(np.mean(uneven)),
        worst_gmsd=max(uneven),
        equal_share=sum(same) / len(same),
        delta=delta_fidelity(outputs, reference),
    )


def worst_mean(values: np.ndarray, length: int) -> float:
    """The highest mean of `length` successive values; of all of them if there are fewer."""
    window = max(1, min(length, len(values)))
    return float(np.lib.stride_tricks.sliding_window_view(values, window).mean(-1).max())


def stability(run: Sequence[Picture], motion: InputMotion) -> Stability:
    """Stability of a run whose inputs moved like that."""
    return Stability(
        warp_error=warp_error(run, motion),
        flow_error_px=flow_error_px(run, motion),
        flicker=flicker(run, motion),
        high_share=high_share(run, motion),
    )


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
