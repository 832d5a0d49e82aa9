"""bench.picture_fidelity against plain computations and values known beforehand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from skimage.metrics import structural_similarity

from bench.picture_fidelity import SCALE_WEIGHTS, gmsd, halved, ms_ssim, psnr_db, scale_weights
from pipelines.core.types import Picture
from tests.fakes.textures import noisy, textured

Floats = npt.NDArray[np.float64]


def test_equal_pictures() -> None:
    picture = textured()
    assert psnr_db(picture, picture) == math.inf
    assert ms_ssim(picture, picture) == 1
    assert gmsd(picture, picture) == 0


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0])
def test_psnr_of_noise_is_that_of_its_sigma(sigma: float) -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert psnr_db(noisy(grey, sigma), grey) == pytest.approx(20 * math.log10(255 / sigma), abs=0.12)


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
    a = textured(0, 176, 192)
    for b in (noisy(a, 20), np.roll(a, 2, axis=1), (a * 0.7).astype(np.uint8)):
        assert ms_ssim(a, b) == pytest.approx(_plain_ms_ssim(a, b, SCALE_WEIGHTS), abs=2e-5)
    a = a[:48]
    assert ms_ssim(a, noisy(a, 20)) == pytest.approx(_plain_ms_ssim(a, noisy(a, 20), scale_weights(48)), abs=2e-5)


def test_one_scale_is_ssim_as_scikit_image_has_it() -> None:
    a = textured(0, 20, 40)
    b = noisy(a, 15)
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
    a = textured(0, 40, 52)
    for b in (noisy(a, 20), np.roll(a, 1, axis=0), cv2.GaussianBlur(a, (0, 0), 2)):
        assert gmsd(a, b) == pytest.approx(_plain_gmsd(a, b), abs=1e-5)


def test_gmsd_of_an_even_change_is_0_and_of_a_worse_one_larger() -> None:
    a = (textured() // 2).astype(np.uint8)
    assert gmsd(a, a + 60) < 1e-6
    assert 0 < gmsd(a, noisy(a, 4)) < gmsd(a, noisy(a, 16))


def test_halving_leaves_out_an_odd_row() -> None:
    plane = np.arange(15, dtype=np.float32).reshape(3, 5)
    assert halved(plane).tolist() == [[3, 5]]
