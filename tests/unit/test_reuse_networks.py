"""Windows of a UNet against the same rule written down on whole pictures: old values outside, new values inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from cache.features.lines import FeatureLines, Features, WindowPlaces
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.model import Condition
from pipelines.image.reuse.networks import TapedDenoiser, window_networks
from pipelines.image.reuse.tape import obstacle
from tests.fakes.image_model import stable_diffusion_schedule

ROWS, COLUMNS = 16, 24
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """Self-attention at two of its three levels, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        )
    return network.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoiser(unet: UNet2DConditionModel) -> UNetDenoiser:
    return UNetDenoiser(
        unet, schedule=stable_diffusion_schedule(), prediction_type="epsilon", device=CPU, dtype=torch.float64
    )


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    random = torch.Generator().manual_seed(seed)
    timestep = torch.arange(rows) * 200 + 99
    embeds = torch.randn((rows, 3, 8), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    condition = Condition(embeds=embeds, pooled=None, time_ids=None, row=timestep, step=timestep)
    return torch.randn((rows, 4, ROWS, COLUMNS), generator=random, dtype=torch.float64), timestep, condition


def places(*windows: tuple[int, int, int], size: tuple[int, int]) -> WindowPlaces:
    """windows: (line, row, column) of each."""
    line, row, column = torch.tensor(windows).T
    return WindowPlaces(line=line, row=row, column=column, size=size)


def cut(pictures: torch.Tensor, where: WindowPlaces, chosen: list[int] | None = None) -> torch.Tensor:
    entries = where.line.tolist() if chosen is None else chosen
    return torch.stack(
        [
            pictures[entry, :, row : row + where.size[0], column : column + where.size[1]]
            for entry, row, column in zip(entries, where.row.tolist(), where.column.tolist(), strict=True)
        ]
    )


def filled(features: Features, x0: torch.Tensor) -> FeatureLines:
    lines = FeatureLines(len(x0), ROWS, COLUMNS, features, x0)
    lines.write(torch.arange(len(x0)), features, x0)
    return lines


@contextmanager
def replaced(unet: nn.Module, make: Callable[[str, nn.Module], Callable[..., Any] | None]) -> Iterator[None]:
    """Replace the forward of modules for which `make` returns one."""
    changed = []
    for name, module in unet.named_modules():
        forward = make(name, module)
        if forward is not None:
            module.forward = forward  # type: ignore[method-assign]
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


class MaskedRule:
    """The rule on whole pictures, of one row: records a pass, then computes one whose inputs are old outside a mask."""

    def __init__(self, unet: nn.Module, window: tuple[slice, slice]) -> None:
        self._unet, self._window, self._recording = unet, window, True
        self._old: dict[str, Any] = {}

    def run(self, call: Callable[[], torch.Tensor], *, record: bool) -> torch.Tensor:
        self._recording = record
        with replaced(self._unet, self._make):
            return call()

    def _make(self, name: str, module: nn.Module) -> Callable[..., Any] | None:
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            plain = module.forward
            return lambda values: plain(self._mixed(name, values))
        if isinstance(module, nn.GroupNorm):
            return lambda values: self._normalised(name, module, values)
        if isinstance(module, nn.Linear) and (name.endswith("attn1.to_k") or name.endswith("attn1.to_v")):
            linear = module.forward
            return lambda tokens: self._mixed_tokens(name, linear(tokens))
        return None

    def _mixed(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if self._recording:
            self._old[name] = values
            return values
        scale = ROWS // values.shape[2]
        part = tuple(slice(s.start // scale, s.stop // scale) for s in self._window)
        mixed = self._old[name].clone()
        mixed[(..., *part)] = values[(..., *part)]
        return mixed

    def _mixed_tokens(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        scale = int((ROWS * COLUMNS / tokens.shape[1]) ** 0.5)
        pictures = tokens.transpose(1, 2).unflatten(2, (ROWS // scale, COLUMNS // scale))
        return self._mixed(name, pictures).flatten(2).transpose(1, 2)

    def _normalised(self, name: str, norm: nn.GroupNorm, values: torch.Tensor) -> torch.Tensor:
        grouped = values.reshape(1, norm.num_groups, -1)
        if self._recording:
            self._old[name] = (grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True))
        mean, variance = self._old[name]
        shape = (1, -1, *[1] * (values.dim() - 2))
        scaled = ((grouped - mean) / (variance + norm.eps).sqrt()).reshape(values.shape)
        return scaled * norm.weight.view(shape) + norm.bias.view(shape)


def test_whole_pictures_are_what_the_denoiser_makes_of_them(denoiser: UNetDenoiser) -> None:
    taped = TapedDenoiser(denoiser)
    assert (taped.cell, taped.levels, taped.token_levels) == (4, 3, (1, 2))
    latents, timestep, condition = inputs(2)
    x0, features = taped.whole(latents, timestep, condition)
    assert torch.equal(x0, denoiser(latents, timestep, condition))
    assert [tuple(m.shape[:3]) for m in features.maps] == [(2, 16, 24), (2, 8, 12), (2, 4, 6)]
    assert features.tokens[0].shape[3] == 0
    assert features.tokens[1].shape[:3] == (2, 8, 12)


@pytest.mark.parametrize(("row", "column", "size"), [(0, 0, (8, 8)), (4, 8, (8, 12)), (8, 16, (8, 8)), (0, 4, (16, 8))])
def test_a_window_of_an_unchanged_picture_is_that_part_of_it(
    denoiser: UNetDenoiser, row: int, column: int, size: tuple[int, int]
) -> None:
    taped = TapedDenoiser(denoiser)
    latents, timestep, condition = inputs(1)
    x0, features = taped.whole(latents, timestep, condition)
    lines, where = filled(features, x0), places((0, row, column), size=size)
    window, computed = taped.windows(
        cut(latents, where), timestep, condition, lines.around(where), lines.token_index(where)
    )
    torch.testing.assert_close(window, cut(x0, where), rtol=0, atol=1e-11)
    lines.update(where, computed, window)
    torch.testing.assert_close(lines.result(torch.tensor([0])), x0, rtol=0, atol=1e-11)


def test_two_windows_in_turn_follow_the_rule_on_whole_pictures(
    unet: UNet2DConditionModel, denoiser: UNetDenoiser
) -> None:
    """The second window sees what the first one computed around it."""
    taped = TapedDenoiser(denoiser)
    (before, timestep, condition), (after, _, _) = inputs(1, seed=1), inputs(1, seed=2)
    x0, features = taped.whole(before, timestep, condition)
    lines, held = filled(features, x0), x0.clone()
    rule = MaskedRule(unet, (slice(4, 12), slice(8, 20)))
    rule.run(lambda: denoiser(before, timestep, condition), record=True)
    for picture, where in ((after, places((0, 4, 8), size=(8, 12))), (before, places((0, 4, 8), size=(8, 12)))):
        window, computed = taped.windows(
            cut(picture, where, [0]), timestep, condition, lines.around(where), lines.token_index(where)
        )
        lines.update(where, computed, window)
        mixed = before.clone()
        mixed[..., 4:12, 8:20] = picture[..., 4:12, 8:20]
        wanted = rule.run(lambda mixed=mixed: denoiser(mixed, timestep, condition), record=False)  # type: ignore[misc]
        held[..., 4:12, 8:20] = wanted[..., 4:12, 8:20]
        torch.testing.assert_close(lines.result(torch.tensor([0])), held, rtol=0, atol=1e-10)
    torch.testing.assert_close(held, x0, rtol=0, atol=1e-10)  # back to where it was


def test_windows_of_several_lines_in_one_pass(denoiser: UNetDenoiser) -> None:
    taped = TapedDenoiser(denoiser)
    latents, timestep, condition = inputs(3)
    x0, features = taped.whole(latents, timestep, condition)
    lines = filled(features, x0)
    where = places((2, 0, 0), (0, 8, 12), (2, 8, 16), size=(8, 8))
    chosen = where.line
    own = Condition(embeds=condition.embeds[chosen], pooled=None, time_ids=None, row=chosen, step=chosen)
    window, _ = taped.windows(cut(latents, where), timestep[chosen], own, lines.around(where), lines.token_index(where))
    torch.testing.assert_close(window, cut(x0, where), rtol=0, atol=1e-11)


def test_networks_without_windows_say_why(unet: UNet2DConditionModel) -> None:
    import copy

    assert obstacle(unet) is None
    other = copy.deepcopy(unet)
    attention = next(m for m in other.modules() if isinstance(m, Attention) and not m.is_cross_attention)
    attention.set_processor(_Mine())
    assert "_Mine" in (obstacle(other) or "")
    wide = copy.deepcopy(unet)
    wide.conv_in = nn.Conv2d(4, 8, 5, padding=2)
    assert obstacle(wide) == "conv_in is a convolution of 5x5"
    denoiser = UNetDenoiser(
        wide, schedule=stable_diffusion_schedule(), prediction_type="epsilon", device=CPU, dtype=torch.float64
    )
    assert window_networks(denoiser) == "conv_in is a convolution of 5x5"


class _Mine(AttnProcessor2_0):
    """Another attention processor."""
