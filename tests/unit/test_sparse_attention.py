"""Attention to windows with restored denominators, against a softmax with a mask, spelled out."""

from __future__ import annotations

import pytest
import torch

from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition
from pipelines.image.sparse_attention.denoiser import SparseConfig, SparseDenoiser
from pipelines.image.sparse_attention.formulas import KeyWindows, full_attention, outside_attention, windowed_attention
from tests.fakes.image_model import unet_model

CPU = torch.device("cpu")
GRID = (4, 6)


def tokens(seed: int) -> torch.Tensor:
    return torch.randn((2, 3, 24, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_keys(query: int, block: int, window: int) -> list[int]:
    """Return the keys of a query on GRID: a window of this side around its block, moved into the grid."""
    ranges = []
    for place, length in zip(divmod(query, GRID[1]), GRID, strict=True):
        side = min(window, length)
        start = place // block * block + (block - side) // 2
        start = max(0, min(start, length - side))
        ranges.append(range(start, start + side))
    return [row * GRID[1] + column for row in ranges[0] for column in ranges[1]]


@pytest.mark.parametrize(("block", "window"), [(1, 1), (1, 3), (2, 2), (2, 4), (2, 5), (2, 99)])
def test_ratio_and_windows_equal_a_plain_computation(block: int, window: int) -> None:
    windows = KeyWindows(GRID, block=block, window=window, device=CPU)
    query, key, value = tokens(0), tokens(1), tokens(2)
    result, ratio = full_attention(query, key, value, windows)
    torch.testing.assert_close(result, torch.nn.functional.scaled_dot_product_attention(query, key, value))
    later = tokens(3)
    got = windowed_attention(later, key, value, windows, ratio)
    for row, head, token in ((0, 0, 0), (1, 2, 23), (0, 1, 9), (1, 0, 14)):
        keys = plain_keys(token, block, window)
        weight = (key[row, head] @ query[row, head, token] / 5**0.5).exp()
        rho = weight[keys].sum() / weight.sum()
        torch.testing.assert_close(ratio[row, head, token], rho)
        now = (key[row, head] @ later[row, head, token] / 5**0.5).exp()[keys]
        torch.testing.assert_close(got[row, head, token], (now / (now.sum() / rho)) @ value[row, head, keys])
    assert windows.share == len(plain_keys(0, block, window)) / 24


def test_a_window_over_everything_is_full_attention() -> None:
    windows = KeyWindows(GRID, block=2, window=6, device=CPU)
    query, key, value = tokens(0), tokens(1), tokens(2)
    result, ratio = full_attention(query, key, value, windows)
    torch.testing.assert_close(ratio, torch.ones_like(ratio))
    torch.testing.assert_close(windowed_attention(query, key, value, windows, ratio), result)


def test_windows_and_what_was_outside_add_up_to_full_attention() -> None:
    windows = KeyWindows(GRID, block=2, window=4, device=CPU)
    query, key, value = tokens(0), tokens(1), tokens(2)
    result, ratio = full_attention(query, key, value, windows)
    outside = outside_attention(result, query, key, value, windows, ratio)
    for row, head, token in ((0, 0, 0), (1, 2, 23)):
        weights = (key[row, head] @ query[row, head, token] / 5**0.5).softmax(0)
        others = [t for t in range(24) if t not in plain_keys(token, 2, 4)]
        torch.testing.assert_close(outside[row, head, token], weights[others] @ value[row, head, others])
    torch.testing.assert_close(windowed_attention(query, key, value, windows, ratio) + outside, result)


def test_with_its_own_ratio_only_the_keys_outside_are_missing() -> None:
    """Where the values outside the window are 0, nothing is missing at all."""
    windows = KeyWindows(GRID, block=2, window=4, device=CPU)
    query, key, value = tokens(0), tokens(1), tokens(2)
    value[:, :, [t for t in range(24) if t not in plain_keys(0, 2, 4)]] = 0
    result, ratio = full_attention(query, key, value, windows)
    torch.testing.assert_close(windowed_attention(query, key, value, windows, ratio)[:, :, 0], result[:, :, 0])
    assert (
        windowed_attention(query, key, value, windows, torch.ones_like(ratio))[:, :, 0] - result[:, :, 0]
    ).abs().max() > 0.1


@torch.inference_mode()
def test_a_denoiser_is_exact_in_full_calls_and_keeps_ratios_by_line() -> None:
    plain = unet_model(torch.float64).runtime.denoiser
    assert isinstance(plain, UNetDenoiser)
    sparse = SparseDenoiser(plain, (8, 8), lines=4, config=SparseConfig(interval=2, block=2, window=4))
    assert len(sparse.layers) == 3
    random = torch.Generator().manual_seed(1)
    latents = torch.zeros(())

    def difference(steps: list[int], *, same: bool = False) -> torch.Tensor:
        nonlocal latents
        latents = latents if same else torch.randn((2, 4, 8, 8), generator=random, dtype=torch.float64)
        columns = torch.tensor([[0.0, 3.0, 0.8]] * 2)
        condition = Condition(
            embeds=torch.ones((2, 3, 16)), pooled=None, time_ids=None, row=torch.tensor([0, 1]),
            step=torch.tensor(steps), negative=torch.tensor([0, 0]), inputs={"feature_bank": columns},
        )  # fmt: skip
        exact = plain(
            latents,
            torch.tensor([500, 250]),
            Condition(embeds=condition.embeds, pooled=None, time_ids=None, row=condition.row, step=condition.step),
        )
        return (sparse(latents, torch.tensor([500, 250]), condition) - exact).abs().amax(dim=(1, 2, 3))

    assert difference([0, 1]).max() < 1e-9
    ratios = next(iter(sparse.layers.values())).ratios
    assert [bool((ratios[line] < 1).all()) for line in range(4)] == [True, False, True, False]
    assert difference([0, 1]).min() > 1e-6
    assert difference([1, 0]).max() < 1e-9
    sparse.restart()
    assert difference([0, 1]).max() < 1e-9
    assert difference([0, 1], same=True).max() < 1e-6  # ratios are float32
    whole = SparseDenoiser(plain, (8, 8), lines=4, config=SparseConfig(block=2, window=8))
    assert not whole.layers
