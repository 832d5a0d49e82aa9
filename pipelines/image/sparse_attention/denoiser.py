"""Owns a denoiser whose self-attention is full in every n-th call and windowed in between.

The ratios that restore the denominators, and what the keys outside the windows added, are kept by line
(pipelines/image/feature_bank/lines.py says what that is). Which calls are full is decided on the host by counting, so
each kind can be captured in a graph of its own. Weights are shared with the plain denoiser. No control turns it on:
docs/caching-bank.md says why. Independent of backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipelines.conditioning.feature_bank import FEATURE_BANK
from pipelines.image.feature_bank.lines import LineStates, PassLines
from pipelines.image.feature_bank.memory import layer_sizes, self_attentions
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.loading.text_projection import same_parameters
from pipelines.image.model import Condition

from .formulas import KeyWindows, full_attention, outside_attention, windowed_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseConfig:
    """interval: a call is full every so many calls, the first one too. block, window: sides in tokens; layers whose
    grid is no larger than the window, or no multiple of the block, stay full."""

    interval: int = 4
    block: int = 8
    window: int = 16


@dataclass(slots=True)
class _Call:
    """lines: of the call that runs, None outside. full: whether it attends to all keys."""

    lines: PassLines | None = None
    full: bool = True


class RestoredAttention:
    """A processor of diffusers' Attention. ratios: [lines + 1, heads, tokens] float32; outside: [lines + 1, heads,
    tokens, d] in the network's dtype, what the keys outside the windows added. The last line is spare."""

    def __init__(self, windows: KeyWindows, module: Any, states: LineStates, call: _Call) -> None:
        """module: the Attention."""
        weight, memory = module.to_v.weight, (states.lines + 1, module.heads, windows.tokens)
        self.ratios = torch.ones(memory, device=weight.device)
        self.outside = torch.zeros((*memory, weight.shape[0] // module.heads), dtype=weight.dtype, device=weight.device)
        self._windows, self._states, self._call = windows, states, call

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
        rows, lines = hidden_states.shape[0], self._call.lines
        assert lines is not None, "outside of a call"
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if self._call.full:
            seen, ratio = full_attention(query, key, value, self._windows)
            target = self._states.targets(lines, lines.writes)
            self.ratios.index_copy_(0, target, ratio.to(self.ratios.dtype))
            outside = outside_attention(seen, query, key, value, self._windows, ratio)
            self.outside.index_copy_(0, target, outside)
        else:
            filled = lines.filled[:, None, None]
            ratio = torch.where(filled, self.ratios.index_select(0, lines.line), 1.0)
            seen = windowed_attention(query, key, value, self._windows, ratio)
            outside = self.outside.index_select(0, lines.line)
            seen = seen + torch.where(filled[..., None], outside, 0.0)
        output: torch.Tensor = attn.to_out[1](
            attn.to_out[0](seen.transpose(1, 2).reshape(rows, -1, attn.to_q.out_features))
        )
        scaled: torch.Tensor = (
            output + hidden_states if attn.residual_connection else output
        ) / attn.rescale_output_factor
        return scaled


class SparseDenoiser:
    """A `Denoiser`. An entry whose line has seen no full call of its epoch attends to its windows as if they were all
    there is: begin an epoch with a full call (`restart`)."""

    def __init__(
        self, plain: UNetDenoiser, latent_size: tuple[int, int], *, lines: int, config: SparseConfig | None = None
    ) -> None:
        """latent_size: (height, width). lines: how many entries' ratios are kept."""
        self._config = config or SparseConfig()
        self._calls, self._call = 0, _Call()
        self._denoiser = same_parameters(plain)
        unet, device = self._denoiser.unet, next(iter(plain.unet.parameters())).device
        self._states = LineStates(lines, 1, device)
        sizes = layer_sizes(unet, latent_size)
        self.layers: Mapping[str, RestoredAttention] = {
            name: RestoredAttention(self._windows(sizes[name], device), module, self._states, self._call)
            for name, module in self_attentions(unet)
            if self._is_sparse(sizes[name])
        }
        for name, module in self_attentions(unet):
            if name in self.layers:
                module.set_processor(self.layers[name])

    def restart(self) -> None:
        """Make the next call a full one."""
        self._calls = 0

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`. condition.inputs has the columns of the bank's conditioner."""
        assert condition.negative is not None
        inputs, call = dict(condition.inputs), self._call
        call.lines = self._states.begin(inputs.pop(FEATURE_BANK), condition.step, condition.negative)
        call.full = self._calls % self._config.interval == 0
        try:
            x0: torch.Tensor = self._denoiser(latents, timestep, replace(condition, inputs=inputs))
            if call.full:
                self._states.end(call.lines)
        finally:
            call.lines = None
        self._calls += 1
        return x0

    def _is_sparse(self, grid: tuple[int, int]) -> bool:
        block, window = self._config.block, self._config.window
        return all(side % block == 0 for side in grid) and max(grid) > window

    def _windows(self, grid: tuple[int, int], device: torch.device) -> KeyWindows:
        return KeyWindows(grid, block=self._config.block, window=self._config.window, device=device)
