"""The formulas of caching across steps equal diffusers' own hooks on a tiny transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from cache.features.steps.contract import Action, relative_l1, weighted
from cache.features.steps.first_block import FirstBlockGate
from cache.features.steps.magnitude import magnitude_ratios, magnitude_schedule, nearest
from cache.features.steps.taylor import Taylor

STEPS, BLOCKS = 14, 3


class Stack(nn.Module, CacheMixin):
    """Transformer blocks in a row. seen: (block, input, output) of each block that was really run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        with torch.random.fork_rng():
            torch.manual_seed(4)
            blocks = [BasicTransformerBlock(16, 2, 8) for _ in range(BLOCKS)]
        self.transformer_blocks = nn.ModuleList(blocks).double().requires_grad_(False)
        for index, block in enumerate(self.transformer_blocks):
            self._watch(index, block)

    def _watch(self, index: int, block: Any) -> None:
        run = block.forward

        def forward(hidden_states: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = run(hidden_states)
            self.seen.append((index, hidden_states, out))
            return out

        block.forward = forward

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.transformer_blocks:
            hidden_states = block(hidden_states=hidden_states)
        return hidden_states


def trajectory() -> list[torch.Tensor]:
    """Latents that move fast at first and at the end."""
    generator = torch.Generator().manual_seed(2)
    x, move = torch.randn(2, 2, 5, 16, generator=generator, dtype=torch.float64)
    return [x + 0.04 * (step**0.5 + max(0, step - 10) ** 2) * move for step in range(STEPS)]


def hooked(config: Any) -> tuple[Stack, list[torch.Tensor]]:
    """Run a trajectory through a stack with a hook. Returns it and its outputs."""
    stack = Stack()
    stack.enable_cache(config)
    with stack.cache_context("test"):
        return stack, [stack(x) for x in trajectory()]


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2])
def test_first_block_cache(threshold: float) -> None:
    stack, theirs = hooked(FirstBlockCacheConfig(threshold=threshold))
    heads = [(x, out) for index, x, out in stack.seen if index == 0]
    tails = [out for index, _, out in stack.seen if index == BLOCKS - 1]
    gate, anchor, tail = FirstBlockGate(steps=STEPS, threshold=threshold, last=0), torch.tensor(torch.nan), None
    computed = 0
    for step, (x, out) in enumerate(heads):
        residual = out - x
        gate.observe(float((residual - anchor).abs().mean() / anchor.abs().mean()))  # in the step itself, as theirs
        if gate.action(step) is Action.COMPUTE:
            anchor, tail = residual, tails[computed] - out
            computed += 1
        assert tail is not None
        torch.testing.assert_close(out + tail, theirs[step])
    assert computed == len(tails)
    assert 1 < computed < STEPS
    pair = torch.stack([heads[0][1], heads[1][1]])
    plain = (pair[1] - pair[0]).abs().mean() / pair[0].abs().mean()
    torch.testing.assert_close(relative_l1(pair[1:], pair[:1])[0], plain)


@pytest.mark.parametrize("ratios", [(1.0, 1.02, 0.97, 1.035, 1.0), tuple(1 + 0.01 * (-1) ** k for k in range(STEPS))])
def test_mag_cache(ratios: tuple[float, ...]) -> None:
    config = MagCacheConfig(mag_ratios=list(ratios), num_inference_steps=STEPS, threshold=0.06, max_skip_steps=3)
    stack, theirs = hooked(config)
    schedule = magnitude_schedule(nearest(ratios, STEPS))
    tails = iter([out for index, _, out in stack.seen if index == BLOCKS - 1])
    residual = None
    for x, out, action in zip(trajectory(), theirs, schedule, strict=True):
        residual = next(tails) - x if action is Action.COMPUTE else residual
        assert residual is not None
        torch.testing.assert_close(x + residual, out)
    assert next(tails, None) is None
    assert set(schedule) == {Action.COMPUTE, Action.REUSE}


def test_mag_cache_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    _, outputs = hooked(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    printed = capsys.readouterr().out
    theirs = [float(text) for text in printed[printed.rindex("[") + 1 : printed.rindex("]")].split(",")]
    residuals = [out - x for x, out in zip(trajectory(), outputs, strict=True)]
    assert magnitude_ratios(residuals) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("interval", [2, 3])
def test_taylorseer(interval: int, order: int) -> None:
    config = TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float64,
        cache_identifiers=[r"transformer_blocks\.0"],
    )
    stack = Stack()
    stack.enable_cache(config)
    with stack.cache_context("test"):
        theirs = [stack.transformer_blocks[0](hidden_states=x) for x in trajectory()]
    computed = iter([out for index, _, out in stack.seen if index == 0])
    history: list[torch.Tensor] = []
    steps: list[float] = []
    for step, out in enumerate(theirs):
        if step < 3 or (step - 4) % interval == 0:
            history, steps = [next(computed), *history], [step, *steps]
            torch.testing.assert_close(history[0], out)
        else:
            weights = torch.tensor([Taylor(order=order).weights(steps, step)], dtype=torch.float64)
            torch.testing.assert_close(weighted(torch.stack(history)[None], weights)[0], out)
    assert next(computed, None) is None
