"""bench.flow against exactly known motions, and compared with OpenCV's flow."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.flow import FlowSettings, gaussian_blur, inside, optical_flow, slopes, texture, warp, warp_error

SIDE = 64


def _texture(count: int, side: int = 96) -> Tensor:
    """Random pictures [count, 3, side, side] in 0..1, with detail at several sizes."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(count, 3, side, side)
    for cells, share in ((6, 0.5), (16, 0.3), (40, 0.2)):
        noise = torch.rand(count, 3, cells, cells, generator=generator)
        total += share * functional.interpolate(noise, side, mode="bicubic")
    return total.clamp(0, 1)


def _moved(x: float = 0, y: float = 0, zoom: float = 0, turn: float = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (first, second, true flow) of a similarity transform about the centre, bicubic from larger pictures."""
    pictures = _texture(3)
    line = torch.arange(SIDE) + 0.5 - SIDE / 2
    across, down = torch.meshgrid(line, line, indexing="xy")
    grow, cos, sin = math.exp(zoom), math.cos(turn), math.sin(turn)

    def seen(u: Tensor, v: Tensor) -> Tensor:
        grid = torch.stack([u, v], -1)[None].expand(3, -1, -1, -1) * (2 / 96)
        return functional.grid_sample(pictures, grid, mode="bicubic", align_corners=False).clamp(0, 1)

    back_x, back_y = across - x, down - y
    second = seen((cos * back_x + sin * back_y) / grow, (cos * back_y - sin * back_x) / grow)
    flow = torch.stack([grow * (cos * across - sin * down) + x - across, grow * (sin * across + cos * down) + y - down])
    return seen(across, down), second, flow[None].expand(3, -1, -1, -1)


def _mean_error_px(flow: Tensor, true: Tensor) -> float:
    """Return the mean endpoint error where the motion stays inside the picture."""
    visible = inside(true)
    error = (flow - true).norm(dim=1, keepdim=True) * visible
    return float(error.sum() / visible.sum())


MOTIONS = {
    "one pixel and a half": ({"x": 1.5}, 0.10),
    "five pixels aslant": ({"x": 4.0, "y": -3.0}, 0.15),
    "nine pixels": ({"x": 9.0}, 0.25),
    "camera zoom at full speed": ({"zoom": 0.012}, 0.06),
    "quick zoom": ({"zoom": 0.06}, 0.12),
    "turn of 2 degrees": ({"turn": 0.035}, 0.10),
    "turn of 9 degrees": ({"turn": 0.15}, 0.25),
}


@pytest.mark.parametrize("name", MOTIONS)
def test_known_motions_are_found(name: str) -> None:
    motion, bound_px = MOTIONS[name]
    first, second, true = _moved(**motion)
    assert _mean_error_px(optical_flow(first, second), true) < bound_px


@pytest.mark.parametrize("motion", [{"x": 1.5}, {"x": 4.0, "y": -3.0}, {"zoom": 0.06}, {"turn": 0.035}])
def test_it_is_no_worse_than_opencvs_dis(motion: dict[str, float]) -> None:
    first, second, true = _moved(**motion)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = []
    for pair in zip(first, second, strict=True):
        grey = [cv2.cvtColor((p.permute(1, 2, 0).numpy() * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for p in pair]
        found.append(torch.from_numpy(dis.calc(*grey, None)).permute(2, 0, 1))
    theirs = _mean_error_px(torch.stack(found), true)
    assert _mean_error_px(optical_flow(first, second), true) < max(1.1 * theirs, 0.05)


def test_a_still_picture_has_no_flow_and_no_warp_error() -> None:
    pictures = _texture(2, SIDE)
    flow = optical_flow(pictures, pictures)
    assert float(flow.abs().max()) == 0
    assert float(warp_error(pictures, pictures, flow).max()) < 1e-6


def test_warping_by_the_true_flow_undoes_it_and_what_is_left_is_flicker() -> None:
    first, second, true = _moved(x=2.0, turn=0.05)
    assert float(warp_error(first, second, true).max()) < 0.01
    brighter = (second + 0.1).clamp(0, 1)
    assert torch.allclose(warp_error(first, brighter, true), torch.full((3,), 0.1), atol=0.015)
    assert float(warp_error(first, second, torch.zeros_like(true)).min()) > 0.015


def test_warp_reads_from_where_the_flow_points() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[0, 0, 5, 9] = 1
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0], flow[:, 1] = 2, -1
    moved = warp(picture, flow)
    assert moved[0, 0, 6, 7] == 1
    assert float(moved.sum()) == 1
    assert int(inside(flow).sum()) == 14 * 15


def test_slopes_and_blur_by_hand() -> None:
    ramp = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 1, 16, 16) / 16
    x, y = slopes(ramp)
    assert torch.allclose(x[..., 1:-1], torch.full((16, 14), 1 / 16))
    assert float(y.abs().max()) == 0
    spot = torch.zeros(1, 1, 17, 17)
    spot[0, 0, 8, 8] = 1
    soft = gaussian_blur(spot, 1.0)
    assert float(soft.sum()) == pytest.approx(1, abs=1e-5)
    assert float(soft[0, 0, 8, 9] / soft[0, 0, 8, 8]) == pytest.approx(math.exp(-0.5), abs=1e-5)
    assert torch.allclose(gaussian_blur(torch.ones(1, 1, 16, 16), 2.0), torch.ones(1, 1, 16, 16))


def test_texture_is_none_along_a_stripe() -> None:
    stripes = torch.sin(torch.arange(64.0) / 2).view(1, 1, 1, 64).expand(1, 1, 64, 64) / 2 + 0.5
    assert float(texture(stripes).max()) < 1e-6
    assert float(texture(_texture(1, SIDE)).median()) > 1e-5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        optical_flow(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 31))
    with pytest.raises(ValueError, match="at least 16"):
        optical_flow(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 1"):
        FlowSettings(levels=0)
    with pytest.raises(ValueError, match="above 0"):
        FlowSettings(damping=0)
