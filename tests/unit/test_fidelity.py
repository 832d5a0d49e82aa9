"""bench.fidelity and its measures against plain computations and values known beforehand."""

from __future__ import annotations

import itertools
import json
import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import structural_similarity

from bench.fidelity import Judge, fidelity, hold, scores, worst_mean
from bench.picture_fidelity import SCALE_WEIGHTS, decibels, gmsd, halved, ms_ssim, psnr_db, scale_weights
from bench.temporal_fidelity import (
    InputMotion,
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

SIDE = 96
Floats = npt.NDArray[np.float64]


def _picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> Picture:
    """A random picture with detail at several sizes."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells, share in ((5, 0.5), (16, 0.3), (40, 0.2)):
        noise = random.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        total += share * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return total.clip(0, 255).astype(np.uint8)


def _noisy(picture: Picture, sigma: float, seed: int = 1) -> Picture:
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def _moving(frames: int, step: int, brightness: float = 0) -> list[Picture]:
    """A window that moves over a large picture by whole pixels. brightness: added to every other frame."""
    large = _picture(3, SIDE, SIDE + frames * step).astype(np.float64) * 0.8 + 20
    shown = [large[:, step * t : step * t + SIDE] + brightness * (t % 2) for t in range(frames)]
    return [picture.round().clip(0, 255).astype(np.uint8) for picture in shown]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_equal_pictures() -> None:
    picture = _picture()
    assert psnr_db(picture, picture) == math.inf
    assert ms_ssim(picture, picture) == 1
    assert gmsd(picture, picture) == 0


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_psnr_of_noise_is_that_of_its_sigma(sigma: float) -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert psnr_db(_noisy(grey, sigma), grey) == pytest.approx(20 * math.log10(255 / sigma), abs=0.12)


def test_psnr_by_hand() -> None:
    a, b = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    b[0, 0] = (255, 0, 0)
    assert psnr_db(a, b) == pytest.approx(10 * math.log10(12))
    assert psnr_db(a, np.full_like(a, 255)) == 0, "no bytes wrap around"
    with pytest.raises(ValueError, match="same size"):
        psnr_db(a, np.zeros((2, 3, 3), np.uint8))


def _plain_grey(picture: Picture) -> Floats:
    return picture.astype(np.float64) @ [0.299, 0.587, 0.114]


def _plain_ms_ssim(a: Picture, b: Picture, weights: tuple[float, ...]) -> float:
    """Equation 7 of Wang et al. 2003, window by window."""
    line = np.arange(11) - 5
    kernel = np.exp(-(line**2) / (2 * 1.5**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    x, y = _plain_grey(a), _plain_grey(b)
    result = 1.0
    for scale, weight in enumerate(weights):
        u, v = (np.lib.stride_tricks.sliding_window_view(plane, (11, 11)) for plane in (x, y))
        mx, my = (u * kernel).sum((-2, -1)), (v * kernel).sum((-2, -1))
        away_x, away_y = u - mx[..., None, None], v - my[..., None, None]
        xx, yy, xy = ((p * q * kernel).sum((-2, -1)) for p, q in ((away_x, away_x), (away_y, away_y), (away_x, away_y)))
        luminance = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
        structure = (2 * xy + 7.65**2) / (xx + yy + 7.65**2)
        last = scale == len(weights) - 1
        result *= np.mean(luminance * structure if last else structure) ** weight
        even = (x.shape[0] // 2 * 2, x.shape[1] // 2 * 2)
        x, y = (p[: even[0], : even[1]] for p in (x, y))
        x, y = ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in (x, y))
    return result


def test_ms_ssim_is_the_plain_computation() -> None:
    a = _picture(0, 176, 192)
    for b in (_noisy(a, 20), np.roll(a, 2, axis=1), (a * 0.7).astype(np.uint8)):
        assert ms_ssim(a, b) == pytest.approx(_plain_ms_ssim(a, b, SCALE_WEIGHTS), abs=2e-5)
    a = a[:48]
    assert ms_ssim(a, _noisy(a, 20)) == pytest.approx(_plain_ms_ssim(a, _noisy(a, 20), scale_weights(48)), abs=2e-5)


def test_one_scale_is_ssim_as_scikit_image_has_it() -> None:
    a = _picture(0, 20, 40)
    b = _noisy(a, 15)
    theirs = structural_similarity(
        *(_plain_grey(p) for p in (a, b)),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ms_ssim(a, b) == pytest.approx(theirs, abs=1e-5)


def test_smaller_pictures_have_fewer_scales() -> None:
    assert [len(scale_weights(side)) for side in (11, 21, 22, 43, 44, 87, 88, 175, 176, 1080)] == [
        1, 1, 2, 2, 3, 3, 4, 4, 5, 5,
    ]  # fmt: skip
    assert sum(scale_weights(100)) == pytest.approx(1)
    assert scale_weights(100)[0] / scale_weights(100)[2] == pytest.approx(SCALE_WEIGHTS[0] / SCALE_WEIGHTS[2])
    assert scale_weights(192) == SCALE_WEIGHTS
    with pytest.raises(ValueError, match="11 px"):
        scale_weights(10)


def test_ms_ssim_of_opposites_is_0() -> None:
    a = np.zeros((32, 32, 3), np.uint8)
    a[::2] = 255
    assert ms_ssim(a, 255 - a) == 0


def _plain_gmsd(a: Picture, b: Picture) -> float:
    """Equations 4 to 6 of Xue et al. 2014, pixel by pixel."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    similar: list[float] = []
    planes = []
    for picture in (a, b):
        p = _plain_grey(picture)
        planes.append((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4)
    for row in range(planes[0].shape[0] - 2):
        for column in range(planes[0].shape[1] - 2):
            m, n = (
                math.hypot((block * prewitt).sum(), (block * prewitt.T).sum())
                for block in (plane[row : row + 3, column : column + 3] for plane in planes)
            )
            similar.append((2 * m * n + 170) / (m * m + n * n + 170))
    return float(np.std(similar))


def test_gmsd_is_the_plain_computation() -> None:
    a = _picture(0, 40, 52)
    for b in (_noisy(a, 20), np.roll(a, 1, axis=0), cv2.GaussianBlur(a, (0, 0), 2)):
        assert gmsd(a, b) == pytest.approx(_plain_gmsd(a, b), abs=1e-5)


def test_gmsd_of_an_even_change_is_0_and_of_a_worse_one_larger() -> None:
    a = (_picture() // 2).astype(np.uint8)
    assert gmsd(a, a + 60) < 1e-6
    assert 0 < gmsd(a, _noisy(a, 4)) < gmsd(a, _noisy(a, 16))


def test_halving_leaves_out_an_odd_row() -> None:
    plane = np.arange(15, dtype=np.float32).reshape(3, 5)
    assert halved(plane).tolist() == [[3, 5]]


# -- time --------------------------------------------------------------------------------------------------------------


def _still_motion(frames: int, cut: int = 0) -> InputMotion:
    """Motion of an input in which nothing moves; cut: a frame that is a cut."""
    size = (SIDE, SIDE)
    everywhere = [np.ones(size, bool)] * (frames - 1)
    return InputMotion(
        flow=[np.zeros((*size, 2), np.float32)] * (frames - 1),
        visible=everywhere,
        static=everywhere,
        scene=[number != cut for number in range(1, frames)],
    )


def test_a_moving_picture_has_no_warp_error_and_a_flickering_one_has() -> None:
    inputs = _moving(5, 3)
    motion = measure_motion(inputs)
    assert motion.frames == 5
    assert 0.9 < motion.visible_share < 0.99, "what leaves the picture is not visible"
    assert warp_error(inputs, motion) < 1.0
    assert warp_error(_moving(5, 3, brightness=12), motion) == pytest.approx(12, abs=1)
    held = hold(inputs)
    assert warp_error(held, motion) > 5, "holding a moving picture is no way to make it steady"
    assert flow_error_px(inputs, motion) == 0
    assert flow_error_px(held, motion) == pytest.approx(3, abs=0.2)
    mirrored = [frame[:, ::-1] for frame in inputs]
    assert flow_error_px(mirrored, motion) == pytest.approx(6, abs=0.7)


def test_what_is_covered_is_left_out() -> None:
    before, after = (_picture(5) for _ in range(2))
    box = _picture(6, 40, 40)
    before[30:70, 20:60], after[30:70, 28:68] = box, box
    (ahead,), (back,) = flows([before, after]), flows([after, before])
    shown = visible(ahead, back)
    assert shown[34:66, 24:56].mean() > 0.95, "the box is seen in both"
    assert shown[:20].mean() > 0.98, "the ground is seen in both"
    assert shown[34:62, 61:67].mean() < 0.35, "the box comes to lie on this"
    difference = np.abs(warped(after.astype(np.float32), ahead) - before).mean(-1)
    assert difference[shown].mean() < 0.5 * difference.mean()


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
    some = InputMotion(flow=motion.flow, visible=motion.visible, static=[half] * 5, scene=motion.scene)
    right = [plain.copy() for _ in range(6)]
    for t, frame in enumerate(right):
        frame[:, 48:] += np.uint8(30 * (t % 2))
    assert flicker(right, some) == 0
    none = InputMotion(flow=motion.flow, visible=motion.visible, static=[~(half | True)] * 5, scene=motion.scene)
    assert math.isnan(flicker(right, none))
    assert math.isnan(high_share(right, none))


@pytest.mark.parametrize(("period", "share"), [(2, 1.0), (3, 1.0), (8, 0.0), (12, 0.0)])
def test_the_share_of_quick_changes_of_a_sine(period: int, share: float) -> None:
    wave = [100 + 50 * math.cos(2 * math.pi * t / period) for t in range(48)]
    frames = [np.full((SIDE, SIDE, 3), round(value), np.uint8) for value in wave]
    assert high_share(frames, _still_motion(48)) == pytest.approx(share, abs=0.01)


def test_the_share_of_quick_changes_of_noise_is_a_half() -> None:
    frames = [_noisy(np.full((SIDE, SIDE, 3), 128, np.uint8), 5, seed) for seed in range(65)]
    assert high_share(frames[:64], _still_motion(64)) == pytest.approx(0.5, abs=0.03)
    assert high_share(frames[:1] * 20, _still_motion(20)) == 0
    # the plain computation, of a block of 33 frames
    lines = np.stack([_plain_grey(frame).ravel() for frame in frames[:33]])
    power = np.abs(np.fft.fft(lines - lines.mean(0), axis=0)) ** 2
    frequency = np.abs(np.fft.fftfreq(33))
    plain = power[frequency > 0.25].sum() / power.sum()
    assert high_share(frames[:33], _still_motion(33)) == pytest.approx(plain, abs=1e-5)


def test_static_pixels_are_found_in_spite_of_a_sensor_s_noise() -> None:
    ground = _picture(2)
    inputs = [_noisy(ground, 2, seed) for seed in range(4)]
    for t, frame in enumerate(inputs):
        frame[20:44, 20 + 6 * t : 44 + 6 * t] = _picture(9, 24, 24)
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
    inputs = _moving(12, 2)
    reference = [255 - frame for frame in inputs]
    outputs = [_noisy(frame, 6, seed) if seed % 2 else frame for seed, frame in enumerate(reference)]
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
    inputs = _moving(3, 2)
    record = scores(inputs, inputs, inputs).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["fidelity"]["psnr_db"] is None
    assert record["fidelity"]["equal_share"] == 1
    assert record["fidelity"]["ms_ssim"] == 1
    assert record["held"]["warp_error"] > record["inputs"]["warp_error"]
    assert record["frames"] == 3


def test_a_cut_is_measured_by_nothing_that_follows_motion() -> None:
    inputs = [*_moving(4, 2), *(255 - frame for frame in _moving(4, 2))]
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
    inputs = _moving(3, 2)
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
    assert [a.shape for a, _ in itertools.pairwise(inputs)] == [(SIDE, SIDE, 3)] * 2
