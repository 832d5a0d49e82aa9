"""Owns measures of a run over time: warp error, optical flow's error, flicker, and the fidelity of frame differences.

The motion is that of the INPUT frames, measured once for all runs that were made from them (`InputMotion`). Pictures
are uint8 RGB [H, W, 3]; errors are in levels of 255. Independent of caches and engines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from bench.picture_fidelity import decibels, luma
from pipelines.core.types import Picture

Flow: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

MIN_SIDE_PX = 32
STATIC_LEVELS, STATIC_BOX_PX = 2.0, 5
"""An input's pixel is static if the mean luma around it changes by less; the mean takes out a sensor's noise."""
BLOCK_FRAMES, MIN_BLOCK_FRAMES = 64, 8
"""Length of the blocks whose spectra are added up."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Frames start to stop - 1 within a scene. static: [H, W], what never differed from the first of them."""

    start: int
    stop: int
    static: Mask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputMotion:
    """What moved on the input, for each of its T - 1 transitions. flow: [H, W, 2] in px, right and down, from frame t
    to t + 1; visible: [H, W], what can be seen in both; static: [H, W], what did not change; scene: whether both frames
    show the same scene (no cut between them). blocks: of 8 to 64 frames; shorter rests of scenes are in none.
    """

    flow: Sequence[Flow]
    visible: Sequence[Mask]
    static: Sequence[Mask]
    scene: Sequence[bool]
    blocks: Sequence[Block]

    @property
    def frames(self) -> int:
        """Number of input frames."""
        return len(self.flow) + 1

    @property
    def visible_share(self) -> float:
        """Share of pixels that warp errors are measured on; 0 if there is nothing to measure on."""
        return _share(self.visible, self.scene)

    @property
    def static_share(self) -> float:
        """Share of pixels that do not change."""
        return _share(self.static, self.scene)


def measure_motion(inputs: Sequence[Picture], cuts: Collection[int] = ()) -> InputMotion:
    """The motion of input frames by OpenCV's DIS flow (Kroeger et al. 2016), on grey pictures.

    cuts: frames that do not continue the one before; transitions into them are measured by nothing. Raises ValueError
    for fewer than two frames or sides below 32 px.
    """
    if len(inputs) < 2 or min(inputs[0].shape[:2]) < MIN_SIDE_PX:
        shape = inputs[0].shape[:2] if inputs else None
        raise ValueError(f"{len(inputs)} frames of {shape}: motion needs two frames of at least {MIN_SIDE_PX} px")
    ahead, back = flows(inputs), flows(inputs[::-1])[::-1]
    blocks = [
        Block(
            start=start, stop=stop, static=np.logical_and.reduce([static(inputs[start], f) for f in inputs[start:stop]])
        )
        for start, stop in block_ranges(len(inputs), cuts)
    ]
    return InputMotion(
        blocks=blocks,
        flow=ahead,
        visible=[visible(f, g) for f, g in zip(ahead, back, strict=True)],
        static=[static(a, b) for a, b in itertools.pairwise(inputs)],
        scene=[number not in cuts for number in range(1, len(inputs))],
    )


def flows(frames: Sequence[Picture]) -> list[Flow]:
    """Optical flow from each frame to the next: pixel p of a frame is at p + flow(p) in the next one."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    return [np.asarray(dis.calc(a, b, None), dtype=np.float32) for a, b in itertools.pairwise(grey)]


def warped(picture: npt.NDArray[np.float32], flow: Flow) -> npt.NDArray[np.float32]:
    """picture(p + flow(p)), bilinear: the next frame as the one before would show it. Borders are repeated."""
    height, width = flow.shape[:2]
    map_x = flow[..., 0] + np.arange(width, dtype=np.float32)
    map_y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    found = cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, dtype=np.float32)


def visible(flow: Flow, back: Flow) -> Mask:
    """Where a pixel stays in the picture and is not covered, [H, W]: the forward-backward check.

    A pixel counts as covered if |f + g(x + f)|^2 > 0.01 (|f|^2 + |g(x + f)|^2) + 0.5 (Sundaram, Brox and Keutzer 2010),
    f ahead, g back.
    """
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    there = warped(back, flow)
    away = np.square(flow + there).sum(-1)
    allowed = 0.01 * (np.square(flow).sum(-1) + np.square(there).sum(-1)) + 0.5
    return np.asarray(inside & (away <= allowed))


def static(a: Picture, b: Picture) -> Mask:
    """Where a picture did not change, [H, W]."""
    box = (STATIC_BOX_PX, STATIC_BOX_PX)
    change = cv2.blur(luma(b) - luma(a), box, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(np.abs(change) < STATIC_LEVELS)


def warp_error(run: Sequence[Picture], motion: InputMotion) -> float:
    """Mean |out_t(x) - out_t+1(x + f)| in levels over what is visible in both: after Lai et al. 2018, whose
    differences are squared.

    What the input's motion does not explain. NaN if nothing is visible twice.
    """
    total, pixels = 0.0, 0
    for number in _measured(motion):
        shown = motion.visible[number]
        after = warped(run[number + 1].astype(np.float32), motion.flow[number])
        difference = np.abs(after - run[number]).mean(-1)
        total += float(difference[shown].sum(dtype=np.float64))
        pixels += int(shown.sum())
    return total / pixels if pixels else math.nan


def flow_error_px(run: Sequence[Picture], motion: InputMotion) -> float:
    """Mean |flow(out) - flow(in)| in px over what is visible: tOF of Chu et al. 2020, against the input's motion."""
    total, pixels = 0.0, 0
    found = flows(run)
    for number in _measured(motion):
        shown = motion.visible[number]
        away = np.linalg.norm(found[number] - motion.flow[number], axis=-1)
        total += float(away[shown].sum(dtype=np.float64))
        pixels += int(shown.sum())
    return total / pixels if pixels else math.nan


def flicker(run: Sequence[Picture], motion: InputMotion) -> float:
    """Mean |out_t-1 - 2 out_t + out_t+1| in levels where the input was static from t - 1 to t + 1.

    A steady change counts nothing. NaN if nothing is static.
    """
    total, pixels = 0.0, 0
    for number in range(1, motion.frames - 1):
        if not (motion.scene[number - 1] and motion.scene[number]):
            continue
        still = motion.static[number - 1] & motion.static[number]
        before, now, after = (frame.astype(np.int32) for frame in run[number - 1 : number + 2])
        second = np.abs(before - 2 * now + after).mean(-1)
        total += float(second[still].sum(dtype=np.float64))
        pixels += int(still.sum())
    return total / pixels if pixels else math.nan


def high_share(run: Sequence[Picture], motion: InputMotion) -> float:
    """Share of the energy over time, without the mean, above a quarter of the frame rate, where the input was static.

    Of luma, in blocks of up to 64 frames within a scene, of pixels that do not differ from the block's first frame.
    White noise has about a half. NaN if nothing is static, 0 if nothing changes.
    """
    high = total = 0.0
    found = False
    for block in motion.blocks:
        if not block.static.any():
            continue
        found = True
        lines = np.stack([luma(frame)[block.static] for frame in run[block.start : block.stop]]).astype(np.float64)
        power = _spectrum(lines - lines.mean(0))
        total += float(power.sum())
        high += float(power[np.arange(len(power)) > len(lines) / 4].sum())
    if not found:
        return math.nan
    return high / total if total else 0.0


def _spectrum(lines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Energy by frequency, [T // 2 + 1], of lines [T, pixels], all pixels together; it adds up to T times theirs."""
    power = np.square(np.abs(np.fft.rfft(lines, axis=0))).sum(1)
    # All but the mean and the highest frequency of an even length stand for two.
    power[1 : (len(lines) - 1) // 2 + 1] *= 2
    return np.asarray(power, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaFidelity:
    """How well the changes from frame to frame are those of the reference. psnr_db and mae: of the differences of
    successive frames against the reference's. energy_ratio: their root mean square over the reference's: below 1
    freezes, above 1 shimmers; NaN if the reference stands still.
    """

    psnr_db: float
    mae: float
    energy_ratio: float


def delta_fidelity(run: Sequence[Picture], reference: Sequence[Picture]) -> DeltaFidelity:
    """Of two runs of the same length, at least two frames."""
    squared = absolute = own = wanted = 0.0
    for number in range(1, len(run)):
        mine = run[number].astype(np.int32) - run[number - 1]
        theirs = reference[number].astype(np.int32) - reference[number - 1]
        away = mine - theirs
        squared += float(np.mean(away * away, dtype=np.float64))
        absolute += float(np.mean(np.abs(away), dtype=np.float64))
        own += float(np.mean(mine * mine, dtype=np.float64))
        wanted += float(np.mean(theirs * theirs, dtype=np.float64))
    steps = len(run) - 1
    return DeltaFidelity(
        psnr_db=decibels(squared / steps),
        mae=absolute / steps,
        energy_ratio=math.sqrt(own / wanted) if wanted else math.nan,
    )


def _measured(motion: InputMotion) -> list[int]:
    """The transitions within a scene."""
    return [number for number, same in enumerate(motion.scene) if same]


def block_ranges(frames: int, cuts: Collection[int]) -> list[tuple[int, int]]:
    """Half-open ranges of frames within a scene, of 8 to 64 frames; shorter ones are left out."""
    edges = sorted({0, frames, *(cut for cut in cuts if 0 < cut < frames)})
    ranges = [
        (at, min(at + BLOCK_FRAMES, stop))
        for start, stop in itertools.pairwise(edges)
        for at in range(start, stop, BLOCK_FRAMES)
    ]
    return [(start, stop) for start, stop in ranges if stop - start >= MIN_BLOCK_FRAMES]


def _share(masks: Sequence[Mask], scene: Sequence[bool]) -> float:
    shares = [float(mask.mean()) for mask, same in zip(masks, scene, strict=True) if same]
    return sum(shares) / len(shares) if shares else 0.0
