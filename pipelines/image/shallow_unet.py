"""Owns a UNet cut at a branch: the whole network, which also returns the deep feature there, and a shallow one, which
runs only the levels above and takes the deep feature as an input. Both read the parameters of the one network.

A UNet's down path leaves M skips, and each of the M resnets of its up path takes one, the deepest skip first. *Branch*
b, 1 to M - 1, cuts where the last b resnets of the up path remain: above it lie the first b skips (the first
convolution and b - 1 layers of the down path) and those b resnets, below it everything else. Branch 1 is the cheapest
(DeepCache, Ma et al. 2023). With a fresh feature the shallow network gives what the whole one gives, to the bit.
Independent of which rows run which form, and of rings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.core.parts import Part, Tensors

from .loading.networks import UNetDenoiser
from .model import Condition
from .parts import unpacked

_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")


@dataclass(frozen=True, slots=True, eq=False)
class _Context:
    """What every layer of a pass is given: time embedding [N, E] and text [N, L, D]."""

    time: torch.Tensor
    text: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A resnet and what follows it: attention, or None; `resize`: downsamplers alone, or upsamplers after a resnet."""

    resnet: Any
    attention: Any
    resize: Sequence[Any]

    def down(self, hidden: torch.Tensor, context: _Context) -> torch.Tensor:
        """One layer of the down path; its result is a skip."""
        if self.resnet is None:
            for downsampler in self.resize:
                hidden = downsampler(hidden)
            return hidden
        return self._attended(self.resnet(hidden, context.time), context)

    def up(self, hidden: torch.Tensor, skip: torch.Tensor, context: _Context, size: torch.Size | None) -> torch.Tensor:
        """One layer of the up path. size: (h, w) after upsampling, where halving had rounded; None: twice its own."""
        hidden = self._attended(self.resnet(torch.cat([hidden, skip], dim=1), context.time), context)
        for upsampler in self.resize:
            hidden = upsampler(hidden, size)
        return hidden

    def _attended(self, hidden: torch.Tensor, context: _Context) -> torch.Tensor:
        if self.attention is None:
            return hidden
        attended: torch.Tensor = self.attention(hidden, encoder_hidden_states=context.text, return_dict=False)[0]
        return attended


def obstacle(unet: Any) -> str | None:
    """Return why a UNet cannot be cut, as a clause; None if it can."""
    config = unet.config
    kinds = {type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)}
    if other := sorted(kinds.difference(_BLOCKS)):
        return f"the network has blocks of the class {other[0]}"
    if config.class_embed_type is not None or config.num_class_embeds is not None:
        return "the network takes class labels"
    if config.addition_embed_type == "image_hint":
        return "the network takes a picture beside its latents"
    if config.center_input_sample:
        return "the network centres its input"
    return None


def branches(unet: Any) -> range:
    """Return the branches at which a UNet can be cut, the cheapest first."""
    return range(1, sum(len(block.resnets) for block in unet.up_blocks))


class BranchedUNet(nn.Module):
    """One UNet, cut at a branch. Inputs as of the UNet itself: embeddings or projected text, no masks or residuals."""

    def __init__(self, unet: Any, branch: int) -> None:
        """unet: without an `obstacle`. branch: one of `branches(unet)`. Raises ValueError for another one."""
        super().__init__()
        if branch not in branches(unet):
            raise ValueError(f"branch cannot be {branch}: this network has branches 1 to {branches(unet)[-1]}")
        self.unet, self.branch = unet, branch
        self._down = _down_layers(unet)
        self._up = _up_layers(unet)
        assert len(self._up) == len(self._down) + 1, (len(self._up), len(self._down))

    def full(self, sample: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor, ...]:
        """Return the network's output [N, C, h, w], its deep feature [N, *deep_shape(h, w)] and the deepest skip above
        the branch [N, *top_shape(h, w)], from which one can tell whether the deep feature would change."""
        context = self._context(sample, timestep, **inputs)
        skips = self._skips(sample, context, len(self._down))
        hidden = self._middle(skips[-1], context)
        deepest = len(self._up) - self.branch
        deep = self._climb(hidden, skips, context, range(deepest))
        output = self._head(self._climb(deep, skips, context, range(deepest, len(self._up))))
        return output, deep, skips[self.branch - 1]

    def shallow(
        self, sample: torch.Tensor, timestep: torch.Tensor, deep: torch.Tensor, **inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the network's output [N, C, h, w] with `deep` in place of what lies below the branch, and the deepest
        skip above it."""
        context = self._context(sample, timestep, **inputs)
        skips = self._skips(sample, context, self.branch - 1)
        layers = range(len(self._up) - self.branch, len(self._up))
        return self._head(self._climb(deep, skips, context, layers)), skips[-1]

    def deep_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the deep feature for latents of this size."""
        above, *size = self.top_shape(height, width)
        return int(self._up[-self.branch].resnet.in_channels) - above, size[0], size[1]

    def top_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the deepest skip above the branch for latents of this size."""
        channels = int(self.unet.conv_in.out_channels)
        for layer in self._down[: self.branch - 1]:
            if layer.resnet is None:
                height, width = -(-height // 2), -(-width // 2)
            else:
                channels = int(layer.resnet.out_channels)
        return channels, height, width

    def _context(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> _Context:
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
        added = unet.get_aug_embed(
            emb=time, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        time = time if added is None else time + added
        if unet.time_embed_act is not None:
            time = unet.time_embed_act(time)
        text = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        )
        return _Context(time, text)

    def _skips(self, sample: torch.Tensor, context: _Context, layers: int) -> list[torch.Tensor]:
        skips = [self.unet.conv_in(sample)]
        for layer in self._down[:layers]:
            skips.append(layer.down(skips[-1], context))
        return skips

    def _middle(self, hidden: torch.Tensor, context: _Context) -> torch.Tensor:
        block = self.unet.mid_block
        if block is None:
            return hidden
        text = {"encoder_hidden_states": context.text} if getattr(block, "has_cross_attention", False) else {}
        middle: torch.Tensor = block(hidden, context.time, **text)
        return middle

    def _climb(
        self, hidden: torch.Tensor, skips: Sequence[torch.Tensor], context: _Context, layers: range
    ) -> torch.Tensor:
        """Run these layers of the up path; layer m takes skip M - 1 - m."""
        last = len(self._up) - 1
        rounded = any(side % 2**self.unet.num_upsamplers for side in skips[0].shape[-2:])
        for layer in layers:
            size = skips[last - layer - 1].shape[-2:] if rounded and layer < last else None
            hidden = self._up[layer].up(hidden, skips[last - layer], context, size)
        return hidden

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        unet = self.unet
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        out: torch.Tensor = unet.conv_out(hidden)
        return out


def _down_layers(unet: Any) -> list[_Layer]:
    layers = []
    for block in unet.down_blocks:
        layers += [_Layer(resnet, attention, ()) for resnet, attention in _pairs(block)]
        if block.downsamplers is not None:
            layers.append(_Layer(None, None, tuple(block.downsamplers)))
    return layers


def _up_layers(unet: Any) -> list[_Layer]:
    layers = []
    for block in unet.up_blocks:
        pairs = _pairs(block)
        layers += [_Layer(resnet, attention, ()) for resnet, attention in pairs[:-1]]
        layers.append(_Layer(*pairs[-1], tuple(block.upsamplers or ())))
    return layers


def _pairs(block: Any) -> list[tuple[Any, Any]]:
    attentions = block.attentions if "CrossAttn" in type(block).__name__ else [None] * len(block.resnets)
    return list(zip(block.resnets, attentions, strict=True))


class BranchedDenoiser(nn.Module):
    """A `UNetDenoiser` cut at a branch: x0 from both forms. Stateless after construction."""

    def __init__(self, denoiser: UNetDenoiser, branch: int) -> None:
        """See `BranchedUNet`."""
        super().__init__()
        self.denoiser = denoiser
        self.network = BranchedUNet(denoiser.unet, branch)

    @torch.no_grad()
    def full(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, ...]:
        """Return x0 (see `pipelines.image.model.Denoiser`) and, in the network's dtype, the deep feature and the
        deepest skip above the branch."""
        sample, inputs = self.denoiser.network_inputs(latents, condition)
        prediction, deep, top = self.network.full(sample, timestep, **inputs)
        return self.denoiser.clean(latents, prediction, timestep), deep, top

    @torch.no_grad()
    def shallow(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition, deep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x0 from the levels above the branch, and the deepest skip there."""
        sample, inputs = self.denoiser.network_inputs(latents, condition)
        prediction, top = self.network.shallow(sample, timestep, deep, **inputs)
        return self.denoiser.clean(latents, prediction, timestep), top


class FullPart(nn.Module):
    """The whole network as a module of positional tensors: inputs of `denoise_inputs` -> (x0, deep, top)."""

    def __init__(self, denoiser: BranchedDenoiser, names: Sequence[str]) -> None:
        super().__init__()
        self.denoiser, self._names = denoiser, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        return self.denoiser.full(*unpacked(self._names, inputs))


class ShallowPart(nn.Module):
    """The levels above the branch: the deep feature, then the inputs of `denoise_inputs` -> (x0, top)."""

    def __init__(self, denoiser: BranchedDenoiser, names: Sequence[str]) -> None:
        super().__init__()
        self.denoiser, self._names = denoiser, tuple(names)

    def forward(self, deep: torch.Tensor, *inputs: torch.Tensor) -> Tensors:
        return self.denoiser.shallow(*unpacked(self._names, inputs), deep)


def full_part(denoiser: BranchedDenoiser, inputs: dict[str, torch.Tensor]) -> Part:
    """Return the part of the whole network at the shapes of `inputs`, which `denoise_inputs` made."""
    return Part(name="full", module=FullPart(denoiser, tuple(inputs)), inputs=inputs)


def shallow_part(denoiser: BranchedDenoiser, inputs: dict[str, torch.Tensor], deep: torch.Tensor) -> Part:
    """Return the part of the shallow network at the shapes of `inputs` and the deep feature."""
    return Part(name="shallow", module=ShallowPart(denoiser, tuple(inputs)), inputs={"deep": deep, **inputs})
