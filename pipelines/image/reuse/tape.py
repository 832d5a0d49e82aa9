"""Owns how a UNet computes a window of its picture: what lies around the window comes from an earlier pass.

After SIGE (Li et al. 2022, Efficient Spatially Sparse Inference): each 3x3 convolution reads its neighbours outside of
the window from what it was given in the last pass, group normalisation keeps the statistics of the last pass of the
whole picture, and self-attention sees the keys and values of all tokens. Independent of stores, streams and decisions.

The modules of a network talk to a *tape*, in the order in which they run: `Recording` keeps what a window will need,
`Replaying` provides it. Levels are halvings of the picture: level 0 has the size of the latents.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from cache.features.lines import Features


class Tape(Protocol):
    """What the modules of a network read and write while it runs."""

    def convolution_input(self, values: torch.Tensor) -> torch.Tensor:
        """values: [N, C, h, w] -> the same with a border of 1 on each side."""
        ...

    def normalised(self, values: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
        """values: [N, C, ...] -> the normalisation of the whole picture, applied to them."""
        ...

    def keys(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """keys, values: [N, tokens, C] of what is computed -> those of the whole picture."""
        ...


@dataclass(slots=True, eq=False)
class Recording:
    """Computes whole pictures, and keeps what windows will need. rows: height of the picture in latents."""

    rows: int
    levels: int
    _maps: list[list[torch.Tensor]] = field(init=False)
    _tokens: list[list[torch.Tensor]] = field(init=False)
    _scales: list[torch.Tensor] = field(default_factory=list, init=False)
    _width: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._maps = [[] for _ in range(self.levels)]
        self._tokens = [[] for _ in range(self.levels)]

    def convolution_input(self, values: torch.Tensor) -> torch.Tensor:
        """See `Tape`."""
        level = _level(self.rows, values.shape[2])
        self._width = values.shape[3] << level
        self._maps[level].append(values)
        return functional.pad(values, (1, 1, 1, 1))

    def normalised(self, values: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
        """See `Tape`."""
        groups, channels = norm.num_groups, values.shape[1]
        normalised, mean, inverse = _group_norm(values, norm)
        mean, inverse = (part.repeat_interleave(channels // groups, dim=1) for part in (mean, inverse))
        gain = inverse * norm.weight
        self._scales += [gain.to(values.dtype), (norm.bias - mean * gain).to(values.dtype)]
        return normalised

    def keys(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Tape`."""
        level = self._level_of(keys.shape[1])
        height, width = self.rows >> level, self._width >> level
        self._tokens[level] += [part.reshape(len(part), height, width, -1) for part in (keys, values)]
        return keys, values

    def features(self) -> Features:
        """Return what was kept."""
        like = next(maps[0] for maps in self._maps if maps)
        return Features(
            maps=tuple(_side_by_side([m.permute(0, 2, 3, 1) for m in maps], like) for maps in self._maps),
            tokens=tuple(_side_by_side(tokens, like) for tokens in self._tokens),
            scales=torch.cat(self._scales, dim=1),
        )

    def _level_of(self, tokens: int) -> int:
        return next(level for level in range(self.levels) if (self.rows >> level) * (self._width >> level) == tokens)


@dataclass(slots=True, eq=False)
class Replaying:
    """Computes windows of `rows` latents in height, surrounded by what was kept.

    kept: maps are patches [N, h + 2, w + 2, C] around the windows, tokens are whole [N, H, W, C]. places: by level, the
    index [N, h w] of each of the window's tokens among all. `features` returns what the windows computed themselves:
    maps and tokens [N, h, w, C], and no scales.
    """

    rows: int
    kept: Features
    places: tuple[torch.Tensor, ...]
    _maps: list[list[torch.Tensor]] = field(init=False)
    _tokens: list[list[torch.Tensor]] = field(init=False)
    _map_starts: list[int] = field(init=False)
    _token_starts: list[int] = field(init=False)
    _scale: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        levels = len(self.kept.maps)
        self._maps, self._tokens = [[] for _ in range(levels)], [[] for _ in range(levels)]
        self._map_starts, self._token_starts = [0] * levels, [0] * levels

    def convolution_input(self, values: torch.Tensor) -> torch.Tensor:
        """See `Tape`."""
        level = _level(self.rows, values.shape[2])
        start, channels = self._map_starts[level], values.shape[1]
        self._map_starts[level] += channels
        self._maps[level].append(values.permute(0, 2, 3, 1))
        patch = self.kept.maps[level][..., start : start + channels].permute(0, 3, 1, 2)
        left, right = patch[..., 1:-1, :1], patch[..., 1:-1, -1:]
        middle = torch.cat((left, values, right), dim=3)
        return torch.cat((patch[:, :, :1], middle, patch[:, :, -1:]), dim=2)

    def normalised(self, values: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
        """See `Tape`."""
        start, channels = self._scale, values.shape[1]
        self._scale += 2 * channels
        gain, shift = (
            self.kept.scales[:, begin : begin + channels].view(-1, channels, *(1 for _ in values.shape[2:]))
            for begin in (start, start + channels)
        )
        return torch.addcmul(shift, values, gain)

    def keys(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Tape`."""
        level = next(level for level, places in enumerate(self.places) if places.shape[1] == keys.shape[1])
        return self._all(level, keys), self._all(level, values)

    def features(self) -> Features:
        """Return what the windows computed."""
        like = next(maps[0] for maps in self._maps if maps)
        return Features(
            maps=tuple(_side_by_side(maps, like) for maps in self._maps),
            tokens=tuple(_side_by_side(tokens, like) for tokens in self._tokens),
            scales=self.kept.scales[:, :0],
        )

    def _all(self, level: int, own: torch.Tensor) -> torch.Tensor:
        """Return the keys or values of all tokens, those of the window replaced."""
        start, width = self._token_starts[level], own.shape[2]
        self._token_starts[level] += width
        rows = self.rows >> level
        self._tokens[level].append(own.reshape(len(own), rows, -1, width))
        everything = self.kept.tokens[level][..., start : start + width].flatten(1, 2)
        return everything.scatter(1, self.places[level].unsqueeze(-1).expand_as(own), own)


def _group_norm(values: torch.Tensor, norm: nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the normalised values, and the mean and the inverse deviation of each group [N, groups]."""
    (rows, channels), groups = values.shape[:2], norm.num_groups
    dense = values if values.device.type == "cpu" else values.contiguous()  # all that CUDA's kernel takes
    inner = values[0, 0].numel()
    return torch.native_group_norm(dense, norm.weight, norm.bias, rows, channels, inner, groups, norm.eps)


def _level(rows: int, height: int) -> int:
    return (rows // height).bit_length() - 1


def _side_by_side(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, dim=-1) if parts else like.new_zeros((like.shape[0], 0, 0, 0))


class _Place:
    """Where the modules of one network find the tape of the pass that runs."""

    def __init__(self) -> None:
        self.tape: Any = None


class _Convolution(nn.Module):
    """A 3x3 convolution with a border of 1, of stride 1 or 2, whose border comes from the tape."""

    def __init__(self, convolution: nn.Conv2d, place: _Place) -> None:
        super().__init__()
        self.convolution, self._place = convolution, place

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        inner = self.convolution
        padded = self._place.tape.convolution_input(values)
        if inner.stride[0] == 2:  # windows begin at even rows and columns, so the last row and column are not read
            padded = padded[:, :, :-1, :-1]
        return functional.conv2d(padded, inner.weight, inner.bias, inner.stride)


class _Normalisation(nn.Module):
    """A group normalisation whose statistics come from the tape."""

    def __init__(self, norm: nn.GroupNorm, place: _Place) -> None:
        super().__init__()
        self.norm, self._place = norm, place

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self._place.tape.normalised(values, self.norm)
        return normalised


class _SelfAttention:
    """An attention processor whose keys and values come from the tape; otherwise diffusers' AttnProcessor2_0."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states: [N, tokens, C]."""
        assert encoder_hidden_states is None, "only self-attention"
        assert attention_mask is None, "no mask"
        query = attn.to_q(hidden_states)
        keys, values = self._place.tape.keys(attn.to_k(hidden_states), attn.to_v(hidden_states))
        query, keys, values = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, keys, values))
        seen = functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        seen = attn.to_out[1](attn.to_out[0](seen.to(hidden_states.dtype)))
        result: torch.Tensor = (seen + hidden_states if attn.residual_connection else seen) / attn.rescale_output_factor
        return result


class TapedUNet:
    """A UNet that computes what the given one does, from the same parameters, with a tape.

    There must be no `obstacle`.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = copy.deepcopy(unet, {id(t): t for t in (*unet.parameters(), *unet.buffers())})
        self.levels = len(unet.config.block_out_channels)
        self.token_levels = _token_levels(unet, self.levels)
        self._place = _Place()
        _replace(self.unet, self._place)

    @contextmanager
    def using(self, tape: Tape) -> Iterator[None]:
        """Let the network use a tape while it runs."""
        self._place.tape = tape
        try:
            yield
        finally:
            self._place.tape = None


def _token_levels(unet: Any, levels: int) -> tuple[int, ...]:
    """Return the levels at which a UNet has self-attention."""
    from diffusers.models.attention_processor import Attention

    found = set()
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and not module.is_cross_attention:
            kind, _, rest = name.partition(".")
            block = int(rest.partition(".")[0]) if kind != "mid_block" else 0
            found.add({"down_blocks": block, "mid_block": levels - 1, "up_blocks": levels - 1 - block}[kind])
    return tuple(sorted(found))


def _replace(network: nn.Module, place: _Place) -> None:
    from diffusers.models.attention_processor import Attention

    for module in list(network.modules()):
        if isinstance(module, Attention):
            if not module.is_cross_attention:
                module.set_processor(_SelfAttention(place))
            continue
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                setattr(module, name, _Convolution(child, place))
            elif isinstance(child, nn.GroupNorm):
                setattr(module, name, _Normalisation(child, place))


def obstacle(unet: Any) -> str | None:
    """Return why windows of a UNet cannot be computed, as a clause; None if they can."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size not in ((1, 1), (3, 3)):
            return f"{name} is a convolution of {module.kernel_size[0]}x{module.kernel_size[1]}"
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding != (1, 1):
            return f"{name} has a border of its own"
        if not isinstance(module, Attention) or module.is_cross_attention:
            continue
        if type(module.processor) is not AttnProcessor2_0:
            return f"{name} has an attention processor of its own, {type(module.processor).__name__}"
        if any(part is not None for part in (module.norm_q, module.norm_k, module.group_norm, module.spatial_norm)):
            return f"{name} normalises its inputs"
    return None
