"""Owns the calibration of fp8 blocks: the mean of what each product multiplies.

Inputs of the products, and the values that follow from them, consist mostly of a mean that hardly depends on the token
(three quarters of the values' energy on mini-video). e4m3 rounds in proportion to size, so that the mean costs accuracy
which the rest needs. Subtracting a constant m before rounding is exact: W x = W (x - m) + W m, where W m joins the
bias, or, for values, is added to the result of attention, which is a mean of values. Measured on what the model makes
of fixed noise, at five timesteps and without text, so that the same weights always give the same constants.
Independent of quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import nn

from .blocks import WanBlock
from .text_cache import PlainText
from .transformer import CausalWanTransformer

_TIMESTEPS = (1000.0, 750.0, 500.0, 250.0, 0.0)
_SIDE = 32
"""Of the noise, in latents."""


class BlockMeans(NamedTuple):
    """Means over tokens, float32, of the inputs of the products. values: the largest of attention's values less their
    mean."""

    qkv: torch.Tensor
    cross_query: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    values: float


@torch.no_grad()
def calibrate(transformer: CausalWanTransformer) -> list[BlockMeans]:
    """Run two passes, the first to make latents of noise, and return the means of each block."""
    config, device = transformer.config, transformer.device
    generator = torch.Generator().manual_seed(0)
    size = (1, config.in_channels, len(_TIMESTEPS), _SIDE, _SIDE)
    noise = torch.randn(size, generator=generator).to(device)
    timesteps = torch.tensor([_TIMESTEPS], device=device)
    text = PlainText(transformer, torch.zeros((1, config.text_len, config.text_dim), device=device))
    blocks = [cast(WanBlock, block) for block in transformer.blocks]
    clean = noise - transformer(noise, torch.full_like(timesteps, _TIMESTEPS[0]), text)
    sigma = (timesteps / _TIMESTEPS[0]).view(1, 1, -1, 1, 1)
    with _recorded(blocks) as found:
        transformer((1 - sigma) * clean + sigma * noise, timesteps, text)
    return [_means(seen) for seen in found]


def _means(seen: dict[str, torch.Tensor]) -> BlockMeans:
    values = seen.pop("values").float().flatten(0, -2)
    means = {name: x.float().flatten(0, -2).mean(0) for name, x in seen.items()}
    return BlockMeans(**means, values=float((values - values.mean(0)).abs().max()))


@contextmanager
def _recorded(blocks: list[WanBlock]) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Record the inputs of each block's products, and its values, while the context is open."""
    found: list[dict[str, torch.Tensor]] = [{} for _ in blocks]
    handles = []

    def taking(name: str, seen: dict[str, torch.Tensor]) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen[name] = given[0]

        return hook

    for block, seen in zip(blocks, found, strict=True):
        inputs = {
            "qkv": block.attn1.to_q,
            "cross_query": block.attn2.to_q,
            "up": block.ffn.net[0],
            "down": block.ffn.net[2],
        }
        handles += [module.register_forward_pre_hook(taking(name, seen)) for name, module in inputs.items()]

        def values(_module: nn.Module, _given: object, out: torch.Tensor, seen: dict[str, torch.Tensor] = seen) -> None:
            seen["values"] = out

        handles.append(block.attn1.to_v.register_forward_hook(values))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
