"""Rotary phases: the split of a head, the formula pair by pair, and invariance to a shift of positions."""

from __future__ import annotations

import math

import pytest
import torch

from cache.rotary import Rotary, rotate_pairs, split_head


def grid(frames: int, rows: int, columns: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    t, y, x = torch.meshgrid(torch.arange(frames) + first, torch.arange(rows), torch.arange(columns), indexing="ij")
    return t.flatten(), y.flatten(), x.flatten()


def test_heads_split_as_wans() -> None:
    assert split_head(128) == (44, 42, 42)
    assert split_head(32) == (12, 10, 10)
    assert split_head(16) == (8, 4, 4)


def test_each_pair_turns_by_its_own_frequency() -> None:
    rotary = Rotary(16)
    angles = rotary.angles(torch.tensor([3]), torch.tensor([2]), torch.tensor([1]))[0]
    expected = [3 * 10000 ** (-2 * j / 8) for j in range(4)]
    expected += [2 * 10000 ** (-2 * j / 4) for j in range(2)] + [1 * 10000 ** (-2 * j / 4) for j in range(2)]
    torch.testing.assert_close(angles, torch.tensor(expected), rtol=0, atol=1e-6)


def test_pairs_are_interleaved() -> None:
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    quarter = torch.tensor([math.pi / 2, 0.0])
    torch.testing.assert_close(rotate_pairs(x, quarter.cos(), quarter.sin()), torch.tensor([[0.0, 1.0, 0.0, 1.0]]))


def test_a_common_shift_of_queries_and_keys_changes_no_product() -> None:
    rotary = Rotary(32)
    q, k = torch.randn(2, 1, 24, 2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = []
    for first in (0, 17, 100_000):
        cos, sin = rotary.tables(*grid(4, 2, 3, first), dtype=torch.float64)
        products.append(torch.einsum("bnhd,bmhd->bhnm", rotary.rotate(q, cos, sin), rotary.rotate(k, cos, sin)))
    torch.testing.assert_close(products[1], products[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(products[2], products[0], rtol=0, atol=1e-9)


def test_a_temporal_turn_of_rotated_keys_is_a_rotation_to_the_new_position() -> None:
    rotary = Rotary(32)
    k = torch.randn(1, 24, 2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here, there = (rotary.tables(*grid(4, 2, 3, first), dtype=torch.float64) for first in (2, 7))
    five = torch.full((24,), 5)
    turn = rotary.tables(five, torch.zeros(24), torch.zeros(24), dtype=torch.float64)
    torch.testing.assert_close(
        rotary.rotate(rotary.rotate(k, *here), *turn), rotary.rotate(k, *there), rtol=0, atol=1e-12
    )


def test_float32_angles_do_not_lose_precision_far_out() -> None:
    rotary = Rotary(128)
    t, y, x = torch.tensor([1_000_000]), torch.tensor([0]), torch.tensor([0])
    exact = rotary.axis_angles(0, t)
    angles = rotary.angles(t, y, x)[:, :22]
    assert (angles.double().cos() - exact.cos()).abs().max() < 3e-7


def test_phase_is_added_to_every_temporal_angle_and_to_no_other() -> None:
    rotary = Rotary(32)
    t, y, x = grid(2, 2, 3)
    plain = rotary.angles(t, y, x)
    assert torch.equal(rotary.angles(t, y, x, phase=0.0), plain)
    difference = rotary.angles(t, y, x, phase=torch.full((12,), 1 / 6)) - plain
    torch.testing.assert_close(difference[:, :6], torch.full((12, 6), 1 / 6), rtol=0, atol=1e-6)
    assert torch.equal(difference[:, 6:], torch.zeros(12, 10))


def test_fractional_positions_are_between() -> None:
    rotary = Rotary(16)
    half = rotary.angles(torch.tensor([0.5]), torch.tensor([1.5]), torch.tensor([0.0]))[0]
    assert half[0].item() == pytest.approx(0.5)
    assert half[4].item() == pytest.approx(1.5)


@pytest.mark.parametrize("head_dim", [4, 33])
def test_a_head_that_cannot_be_split_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim is {head_dim}"):
        Rotary(head_dim)
