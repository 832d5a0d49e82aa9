"""bench.fidelity and bench.temporal_fidelity against plain computations and values known beforehand."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from bench.fidelity import Judge, fidelity, hold, scores, worst_mean
from bench.picture_fidelity import decibels, luma
from bench.temporal_fidelity import (
    Block,
    InputMotion,
    block_ranges,
    delta_fidelity,
    flicker,
    flow_error_px,
    flows,
    high_share,
    measure_motion,
    visible,
    warp_error,
    warped,
)
from pipelines.core.types import Picture
from tests.fakes.textures import SIDE, moving_pictures, noisy, textured

# -- time --------------------------------------------------------------------------------------------------------------


def _still_motion(frames: int, cut: int = 0) -> InputMotion:
    """Motion of an input in which nothing moves; cut: a frame that is a cut."""
    size = (SIDE, SIDE)
    everywhere = [np.ones(size, bool)] * (frames - 1)
    cuts = [cut] if cut else []
    return InputMotion(
        blocks=[Block(start=a, stop=b, static=np.ones(size, bool)) for a, b in block_ranges(frames, cuts)],
        flow=[np.zeros((*size, 2), np.float32)] * (frames - 1),
        visible=everywhere,
        static=everywhere,
        scene=[number != cut for number in range(1, frames)],
    )


def test_a_moving_picture_has_no_warp_error_and_a_flickering_one_has() -> None:
    inputs = moving_pictures(5, 3)
    motion = measure_motion(inputs)
    assert motion.frames == 5
    assert 0.9 < motion.visible_share < 0.99, "what leaves the picture is not visible"
    assert warp_error(inputs, motion) < 1.0
    assert warp_error(moving_pictures(5, 3, brightness=12), motion) == pytest.approx(12, abs=1)
    held = hold(inputs)
    assert warp_error(held, motion) > 5, "holding a moving picture is no way to make it steady"
    assert flow_error_px(inputs, motion) == 0
    assert flow_error_px(held, motion) == pytest.approx(3, abs=0.2)
    mirrored = [frame[:, ::-1] for frame in inputs]
    assert flow_error_px(mirrored, motion) == pytest.approx(6, abs=0.7)


def _box_moved() -> tuple[Picture, Picture]:
    """A box moves 8 px to the right over a ground that stands still; it comes to lie on columns 60 to 67."""
    before, after = (textured(5) for _ in range(2))
    box = textured(6, 40, 40)
    before[30:70, 20:60], after[30:70, 28:68] = box, box
    return before, after


def test_exactly_what_is_covered_is_left_out() -> None:
    ahead, back = (np.zeros((SIDE, SIDE, 2), np.float32) for _ in range(2))
    ahead[30:70, 20:60, 0], back[30:70, 28:68, 0] = 8, -8
    covered = np.zeros((SIDE, SIDE), bool)
    covered[30:70, 60:68] = True
    assert np.array_equal(visible(ahead, back), ~covered)
    before, after = _box_moved()
    difference = np.abs(warped(after.astype(np.float32), ahead) - before).mean(-1)
    assert difference[~covered].max() == 0
    assert difference[covered].mean() > 10


def test_with_measured_flow_the_mask_takes_out_most_of_what_is_covered() -> None:
    before, after = _box_moved()
    (ahead,), (back,) = flows([before, after]), flows([after, before])
    shown = visible(ahead, back)
    assert shown[34:66, 24:56].mean() > 0.95, "the box is seen in both"
    assert shown[:20].mean() > 0.98, "the ground is seen in both"
    assert shown[34:66, 60:68].mean() < 0.5, "most of what the box comes to lie on is not"
    difference = np.abs(warped(after.astype(np.float32), ahead) - before).mean(-1)
    assert difference[shown].mean() < 0.75 * difference.mean(), "DIS is inexact at the box's edges"


def test_the_mask_by_hand() -> None:
    flow = np.zeros((40, 40, 2), np.float32)
    flow[..., 0] = 4
    back = -flow.copy()
    back[10, 14] = (-4, 1)  # 1 > 0.01 * (16 + 17) + 0.5
    back[20, 24] = (-4, 0.8)  # 0.64 < 0.01 * (16 + 16.64) + 0.5
    shown = visible(flow, back)
    assert not shown[10, 10]
    assert shown[20, 20]
    assert not shown[:, 36:].any(), "it leaves the picture"
    assert shown.sum() == 40 * 36 - 1


def test_warping_reads_from_where_the_flow_points() -> None:
    picture = np.zeros((33, 33, 1), np.float32)
    picture[8, 9] = 1
    flow = np.zeros((33, 33, 2), np.float32)
    flow[..., 0], flow[..., 1] = 2, -1
    assert warped(picture, flow)[9, 7] == 1


def test_flicker_by_hand() -> None:
    motion = _still_motion(6)
    plain = np.full((SIDE, SIDE, 3), 100, np.uint8)
    assert flicker([plain] * 6, motion) == 0
    assert flicker([plain + 10 * (t % 2) for t in range(6)], motion) == 20
    assert flicker([(plain + 10 * t).astype(np.uint8) for t in range(6)], motion) == 0, "a steady change"
    jump = [(plain + 50 * (t >= 3)).astype(np.uint8) for t in range(6)]
    assert flicker(jump, motion) == 25
    assert flicker(jump, _still_motion(6, cut=3)) == 0, "a cut is no flicker"
    half = np.zeros((SIDE, SIDE), bool)
    half[:, :48] = True
    some = dataclasses.replace(motion, static=[half] * 5)
    right = [plain.copy() for _ in range(6)]
    for t, frame in enumerate(right):
        frame[:, 48:] += np.uint8(30 * (t % 2))
    assert flicker(right, some) == 0
    none = dataclasses.replace(motion, static=[np.zeros_like(half)] * 5, blocks=[])
    assert math.isnan(flicker(right, none))
    assert math.isnan(high_share(right, none))


@pytest.mark.parametrize(("period", "share"), [(2, 1.0), (3, 1.0), (8, 0.0), (12, 0.0)])
def test_the_share_of_quick_changes_of_a_sine(period: int, share: float) -> None:
    wave = [100 + 50 * math.cos(2 * math.pi * t / period) for t in range(48)]
    frames = [np.full((SIDE, SIDE, 3), round(value), np.uint8) for value in wave]
    assert high_share(frames, _still_motion(48)) == pytest.approx(share, abs=0.01)


def test_the_share_of_quick_changes_of_noise_is_a_half() -> None:
    frames = [noisy(np.full((SIDE, SIDE, 3), 128, np.uint8), 5, seed) for seed in range(65)]
    assert high_share(frames[:64], _still_motion(64)) == pytest.approx(0.5, abs=0.03)
    assert high_share(frames[:1] * 20, _still_motion(20)) == 0
    # the plain computation, of a block of 33 frames
    lines = np.stack([luma(frame).ravel() for frame in frames[:33]])
    power = np.abs(np.fft.fft(lines - lines.mean(0), axis=0)) ** 2
    frequency = np.abs(np.fft.fftfreq(33))
    plain = power[frequency > 0.25].sum() / power.sum()
    assert high_share(frames[:33], _still_motion(33)) == pytest.approx(plain, abs=1e-5)


def test_blocks_lie_within_scenes() -> None:
    assert block_ranges(20, []) == [(0, 20)]
    assert block_ranges(140, [70]) == [(0, 64), (70, 134)], "rests of 6 frames are left out"
    assert block_ranges(30, [0, 5, 30, 13]) == [(5, 13), (13, 30)]
    assert block_ranges(7, []) == []


def test_what_fades_slowly_is_static_from_frame_to_frame_but_not_over_a_block() -> None:
    plain = np.full((SIDE, SIDE, 3), 100, np.uint8)
    inputs = [plain.copy() for _ in range(12)]
    for t, frame in enumerate(inputs):
        frame[:, 48:] += np.uint8(t)
    motion = measure_motion(inputs)
    assert motion.static_share == 1
    (block,) = motion.blocks
    assert block.static[:, :44].all()
    assert not block.static[:, 52:].any()


def test_static_pixels_are_found_in_spite_of_a_sensor_s_noise() -> None:
    ground = textured(2)
    inputs = [noisy(ground, 2, seed) for seed in range(4)]
    for t, frame in enumerate(inputs):
        frame[20:44, 20 + 6 * t : 44 + 6 * t] = textured(9, 24, 24)
    motion = measure_motion(inputs)
    assert motion.static[0][60:].mean() > 0.97
    assert motion.static[0][24:40, 22:48].mean() < 0.4
    assert 0.8 < motion.static_share < 0.95


def test_changes_by_hand() -> None:
    plain = np.full((4, 4, 3), 100, np.uint8)
    reference = [plain, plain + 10, plain + 30]
    same = delta_fidelity([frame + 50 for frame in reference], reference)
    assert (same.psnr_db, same.mae, same.energy_ratio) == (math.inf, 0, 1)
    frozen = delta_fidelity([plain] * 3, reference)
    assert frozen.psnr_db == pytest.approx(decibels((10**2 + 20**2) / 2))
    assert (frozen.mae, frozen.energy_ratio) == (15, 0)
    twice = delta_fidelity([plain, plain + 20, plain + 60], reference)
    assert twice.energy_ratio == pytest.approx(2)
    assert math.isnan(delta_fidelity(reference, [plain] * 3).energy_ratio)


# -- scores ------------------------------------------------------------------------------------------------------------


def test_a_run_beside_its_floors() -> None:
    inputs = moving_pictures(12, 2)
    reference = [255 - frame for frame in inputs]
    outputs = [noisy(frame, 6, seed) if seed % 2 else frame for seed, frame in enumerate(reference)]
    judge = Judge(inputs, reference, fps=4)
    found = judge.scores(outputs)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(outputs, reference, strict=True)]
    assert found.fidelity.psnr_db == pytest.approx(decibels(float(np.mean(errors))))
    assert found.fidelity.worst_frame_db == pytest.approx(decibels(max(errors)))
    worst = max(np.mean(errors[at : at + 4]) for at in range(9))
    assert found.fidelity.worst_second_db == pytest.approx(decibels(float(worst)))
    assert found.fidelity.equal_share == 0.5
    assert found.fidelity.worst_ms_ssim < found.fidelity.ms_ssim < 1
    assert 0 < found.fidelity.gmsd < found.fidelity.worst_gmsd
    assert found.outputs.warp_error > found.reference.warp_error + 2
    assert found.reference.warp_error == pytest.approx(found.inputs.warp_error, abs=0.01)
    assert found.inputs.flow_error_px == 0
    assert found.held_fidelity.psnr_db < found.fidelity.psnr_db
    assert found.held.warp_error > found.reference.warp_error
    assert found == scores(outputs, reference, inputs, fps=4)
    refreshed = judge.scores(outputs, full=range(0, 12, 3))
    assert refreshed.held_fidelity.psnr_db > found.held_fidelity.psnr_db
    assert refreshed.held_fidelity.equal_share == pytest.approx(1 / 3)


def test_the_json_has_no_infinities() -> None:
    inputs = moving_pictures(3, 2)
    record = scores(inputs, inputs, inputs).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["fidelity"]["psnr_db"] is None
    assert record["fidelity"]["equal_share"] == 1
    assert record["fidelity"]["ms_ssim"] == 1
    assert record["held"]["warp_error"] > record["inputs"]["warp_error"]
    assert record["frames"] == 3


def test_a_cut_is_measured_by_nothing_that_follows_motion() -> None:
    inputs = [*moving_pictures(4, 2), *(255 - frame for frame in moving_pictures(4, 2))]
    with_cut, without = (measure_motion(inputs, cuts) for cuts in ((4,), ()))
    assert with_cut.scene == [True, True, True, False, True, True, True]
    assert warp_error(inputs, with_cut) < 0.8 * warp_error(inputs, without)
    assert flicker(inputs, with_cut) < flicker(inputs, without)


def test_holding() -> None:
    frames = [np.full((2, 2, 3), value, np.uint8) for value in range(5)]
    assert [int(frame[0, 0, 0]) for frame in hold(frames)] == [0] * 5
    assert [int(frame[0, 0, 0]) for frame in hold(frames, [0, 3])] == [0, 0, 0, 3, 3]
    with pytest.raises(ValueError, match="first frame"):
        hold(frames, [2])


def test_the_worst_second() -> None:
    values = np.array([0.0, 0, 8, 4, 0, 0])
    assert worst_mean(values, 2) == 6
    assert worst_mean(values, 10) == 2
    assert worst_mean(values, 0) == 8
    plain = np.full((16, 16, 3), 9, np.uint8)
    assert fidelity([plain, plain], [plain, plain]).worst_second_db == math.inf


def test_what_cannot_be_scored_is_refused() -> None:
    inputs = moving_pictures(3, 2)
    with pytest.raises(ValueError, match="give as many"):
        scores(inputs[:2], inputs, inputs)
    with pytest.raises(ValueError, match="give as many"):
        scores(inputs, inputs[:2], inputs)
    with pytest.raises(ValueError, match="one size"):
        scores(inputs, [frame[:80] for frame in inputs], inputs)
    with pytest.raises(ValueError, match="two frames"):
        scores(inputs[:1], inputs[:1], inputs[:1])
    with pytest.raises(ValueError, match="32 px"):
        measure_motion([frame[:20] for frame in inputs])
