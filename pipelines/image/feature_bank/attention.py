"""Owns self-attention with a bank, as a processor of diffusers' Attention. Independent of streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .formulas import extended_attention, fused
from .lines import PassLines
from .memory import LayerBank


@dataclass(slots=True)
class CurrentPass:
    """What the processors of a network are told of the pass that runs. lines: None outside of a pass."""

    lines: PassLines | None = None


class BankAttention:
    """Attends to the frame and to its line, fuses the output with the line's, and refreshes the line.

    What is stored is the frame's own: its keys, values, and its output before fusion.
    """

    def __init__(self, layer: LayerBank, current: CurrentPass, threshold: torch.Tensor) -> None:
        self._layer, self._current, self._threshold = layer, current, threshold

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states: [N, S, C]. Returns [N, S, C]."""
        assert encoder_hidden_states is None, "self-attention only"
        assert attention_mask is None, "self-attention of pictures has no mask"
        entries, layer = self._current.lines, self._layer
        assert entries is not None, "outside of a pass"
        own = [attn.to_k(hidden_states), attn.to_v(hidden_states)]
        banked = [layer.read(entries, index, feature) for index, feature in enumerate(own)]
        pairs = ((own[0], banked[0]), (own[1], banked[1]))
        seen = extended_attention(attn.to_q(hidden_states), *pairs, heads=attn.heads)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](seen))
        own.append(output)
        if layer.fuses:
            banked.append(layer.read(entries, len(banked), output))
            output = fused(output, banked[-1], entries.strength, self._threshold)
        layer.refresh(entries, banked, own[: len(banked)])
        scaled: torch.Tensor = (
            output + hidden_states if attn.residual_connection else output
        ) / attn.rescale_output_factor
        return scaled
