"""Owns the static memory of a bank: for each self-attention layer of a UNet the features of every line.

Allocated once, outside of ticks. Independent of streams, and of which line belongs to whom (lines.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .formulas import merged, random_orders
from .lines import LineStates, PassLines

_ORDERS = 16  # different random orders; refresh r of a line uses order r mod 16
_SEED = 20_240_524
_FUSED = re.compile(r"mid_block\.|up_blocks\.[01]\.")  # the layers whose outputs are fused as well


@dataclass(frozen=True, slots=True, kw_only=True)
class BankConfig:
    """interval: a line is refreshed every so many frames. threshold: the cosine from which features are fused.

    The defaults are StreamV2V's.
    """

    interval: int = 4
    threshold: float = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One self-attention layer. tokens: of one picture. channels: of keys and values. outputs: channels of its output,
    or 0 if that is not fused."""

    tokens: int
    channels: int
    outputs: int

    @property
    def elements(self) -> int:
        """Of one line."""
        return self.tokens * (2 * self.channels + self.outputs)


class LayerBank:
    """The features of every line in one layer: keys, values and, where they are fused, outputs."""

    def __init__(self, shape: LayerShape, states: LineStates, orders: torch.Tensor, dtype: torch.dtype) -> None:
        """orders: [K, 2 tokens] int64, the random orders of merging, on the device."""
        widths = (shape.channels, shape.channels, *([shape.outputs] if shape.outputs else []))
        memory = (states.lines + 1, shape.tokens)
        self.fuses = bool(shape.outputs)
        self.features = tuple(torch.zeros((*memory, width), dtype=dtype, device=orders.device) for width in widths)
        self._states, self._orders = states, orders

    def read(self, entries: PassLines, feature: int, own: torch.Tensor) -> torch.Tensor:
        """Return a feature of the entries' lines, [N, M, C]; where a line is empty, the frame's own: attending to a
        second copy of it, or fusing with it, changes nothing but the rounding."""
        stored = self.features[feature].index_select(0, entries.line)
        return torch.where(entries.filled[:, None, None], stored, own)

    def refresh(self, entries: PassLines, banked: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> None:
        """Write to the lines that are due: the frame's features if the line is empty, else bank and frame merged."""
        order = self._orders.index_select(0, self._states.refreshes(entries) % len(self._orders))
        target = self._states.targets(entries, entries.due)
        filled = entries.filled[:, None, None]
        for memory, own, both in zip(self.features, new, merged(banked, new, order), strict=True):
            memory.index_copy_(0, target, torch.where(filled, both, own))


class BankMemory:
    """The memory of all layers. bytes_per_line: what one line takes."""

    def __init__(
        self,
        shapes: Mapping[str, LayerShape],
        lines: int,
        config: BankConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        old: BankMemory | None = None,
    ) -> None:
        """shapes: by the layer's name. old: a smaller one of the same layers, whose lines are taken over."""
        self.states = LineStates(lines, config.interval, device)
        orders = {
            tokens: random_orders(tokens, _ORDERS, _SEED).to(device) for tokens in {s.tokens for s in shapes.values()}
        }
        self.layers = {name: LayerBank(s, self.states, orders[s.tokens], dtype) for name, s in shapes.items()}
        self.threshold = torch.tensor(config.threshold, dtype=dtype, device=device)
        self.bytes_per_line = sum(shape.elements for shape in shapes.values()) * dtype.itemsize
        if old is not None:
            self._take_over(old)

    def _take_over(self, old: BankMemory) -> None:
        self.states.take_over(old.states)
        for name, layer in self.layers.items():
            for memory, before in zip(layer.features, old.layers[name].features, strict=True):
                memory[: old.states.lines].copy_(before[: old.states.lines])


def layer_shapes(unet: Any, latent_size: tuple[int, int]) -> dict[str, LayerShape]:
    """Return the self-attention layers of a UNet by name, for latents of (height, width)."""
    sizes, shapes = layer_sizes(unet, latent_size), {}
    for name, module in self_attentions(unet):
        height, width = sizes[name]
        channels, outputs = int(module.to_k.out_features), int(module.to_out[0].out_features)
        fuses = _FUSED.match(name) is not None
        shapes[name] = LayerShape(tokens=height * width, channels=channels, outputs=outputs if fuses else 0)
    return shapes


def layer_sizes(unet: Any, latent_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return the grid of tokens, (height, width), of each self-attention layer of a UNet by name."""
    sizes = [latent_size]
    for _ in unet.config.block_out_channels[1:]:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return {name: sizes[_level(name, len(sizes))] for name, _ in self_attentions(unet)}


def self_attentions(unet: Any) -> list[tuple[str, Any]]:
    """Return the self-attention layers of a UNet by name, in the order of the modules."""
    from diffusers.models.attention_processor import Attention

    found = unet.named_modules()
    return [(name, m) for name, m in found if isinstance(m, Attention) and not m.is_cross_attention]


def _level(name: str, levels: int) -> int:
    """Return at which resolution a layer works: 0 is that of the latents."""
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return levels - 1
    index = int(rest.partition(".")[0])
    return index if block == "down_blocks" else levels - 1 - index
