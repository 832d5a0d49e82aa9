"""Owns running image networks slice by slice, so that a large picture needs less memory: same result, more calls.

After the exact parts of Streamlined Inference (Zhan et al. 2024, arXiv 2411.01171): operations that work on each
position, or on each batch entry, are grouped, and a group runs slice by slice, so that only what lies between groups
exists in full. Operations that need all positions (the statistics of GroupNorm, keys and values of attention) end a
group. docs/caching-tiles.md says what is bit-equal and what within which tolerance. Independent of who asks for it:
pipelines/image/runtime.py installs it, and without that nothing here runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cache.features.reach import analytic_field
from cache.features.receptive import ReceptiveField

from .model import Condition, Denoiser

SLICE_BYTES = 16 * 2**20
"""About the size of the largest tensor within a group: small beside a large picture's, yet enough work for a call."""

_Activation = Callable[[torch.Tensor], torch.Tensor]


def bands(length: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Divide `length` rows of `row_bytes` into nearly equal half-open ranges of about SLICE_BYTES at most."""
    count = max(1, min(length, -(-length * row_bytes // SLICE_BYTES)))
    yield from ((length * i // count, length * (i + 1) // count) for i in range(count))


class BandedLayers(nn.Module):
    """Convolutional layers in bands of rows, each with the halo of its group's receptive field.

    A group begins where the tensor between layers is smallest: before an upsampling, and after a convolution with a
    stride. Bit-equal to the layers themselves on a CPU.
    """

    def __init__(self, layers: nn.Sequential) -> None:
        """layers: [N, C, H, W] -> [N, C', H', W'], only of operations with a bounded receptive field."""
        super().__init__()
        self.layers = layers
        self._groups = [(group, _bounded_field(group), _widest(group)) for group in _grouped(layers)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `nn.Sequential`."""
        for group, field, channels in self._groups:
            x = _banded(group, x, field, channels)
        return x


def _grouped(layers: nn.Sequential) -> list[nn.Sequential]:
    groups: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, nn.Upsample):
            groups.append([])
        groups[-1].append(layer)
        if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1):
            groups.append([])
    return [nn.Sequential(*group) for group in groups if group]


def _widest(group: nn.Module) -> int:
    convolutions = [module for module in group.modules() if isinstance(module, nn.Conv2d)]
    return max(max(module.in_channels, module.out_channels) for module in convolutions)


def _bounded_field(group: nn.Module) -> ReceptiveField:
    channels = next(module.in_channels for module in group.modules() if isinstance(module, nn.Conv2d))
    field = analytic_field(group, channels)
    assert isinstance(field, ReceptiveField), field.because
    return field


def _banded(
    call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, field: ReceptiveField, channels: int
) -> torch.Tensor:
    """Run `call` in bands. channels: of its widest layer."""
    height, width = x.shape[2:]
    cells, margin = height // field.inputs, field.margin_cells
    finest = max(field.inputs, field.outputs)  # rows of a cell, where they are most
    row_bytes = x.shape[0] * channels * x.element_size() * finest * (width // field.inputs * finest)
    parts = list(bands(cells, row_bytes))
    if len(parts) == 1:
        return call(x)
    result: torch.Tensor | None = None
    for start, stop in parts:
        low, high = max(0, start - margin), min(cells, stop + margin)
        part = call(x[:, :, low * field.inputs : high * field.inputs])
        if result is None:
            shape = (*part.shape[:2], cells * field.outputs, part.shape[3])
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        kept = part[:, :, (start - low) * field.outputs : (stop - low) * field.outputs]
        result[:, :, start * field.outputs : stop * field.outputs] = kept
    assert result is not None
    return result


def group_affine(x: torch.Tensor, norm: nn.GroupNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale, shift), [N, C, 1, 1] float32, with GroupNorm(x) = scale x + shift (Wu and He 2018, equation 1).

    scale = gamma / sqrt(var + eps), shift = beta - scale mean, over each group's channels and all positions.
    """
    wide = torch.promote_types(torch.float32, x.dtype)
    each = x.shape[1] // norm.num_groups
    at_once = x.shape[1] if wide is x.dtype else each  # what has to be widened is widened in small parts
    moments = [torch.var_mean(part.to(wide), dim=(2, 3), correction=0) for part in torch.split(x, at_once, dim=1)]
    shape = (x.shape[0], norm.num_groups, each)
    variances, means = (torch.cat(parts, dim=1).view(shape) for parts in zip(*moments, strict=True))
    between, mean = torch.var_mean(means, dim=2, correction=0, keepdim=True)
    inverse = (variances.mean(dim=2, keepdim=True) + between + norm.eps).rsqrt()  # variance within and between channels
    scale = inverse * norm.weight.to(wide).view(norm.num_groups, each)
    shift = norm.bias.to(wide).view(norm.num_groups, each) - scale * mean
    return scale.view(x.shape[0], -1, 1, 1), shift.view(x.shape[0], -1, 1, 1)


_NEIGHBOURS = ReceptiveField(inputs=1, outputs=1, first=(-1,), last=(1,))


def _norm_act_conv(
    x: torch.Tensor, affine: tuple[torch.Tensor, torch.Tensor], act: _Activation, conv: nn.Module, channels: int
) -> torch.Tensor:
    """conv(act(scale x + shift)) in bands, for a 3×3 convolution."""
    scale, shift = affine

    def run(band: torch.Tensor) -> torch.Tensor:
        convolved: torch.Tensor = conv(act(torch.addcmul(shift, band, scale).to(x.dtype)))
        return convolved

    return _banded(run, x, _NEIGHBOURS, channels)


class SlicedResnet(nn.Module):
    """diffusers' ResnetBlock2D with each normalisation, activation and convolution in bands.

    Within float rounding of the block: normalisation is a multiplication and an addition with statistics of the whole
    picture, whose sums run in another order.
    """

    def __init__(self, block: Any) -> None:
        """block: one that `can_slice` accepts."""
        super().__init__()
        self.block = block

    @staticmethod
    def can_slice(module: nn.Module) -> bool:
        """Whether it is a block of this kind: neither up nor down, 3×3, its time embedding added or scaling."""
        if type(module).__name__ != "ResnetBlock2D":
            return False
        block: Any = module
        plain = block.upsample is None and block.downsample is None and not block.training
        return plain and block.time_embedding_norm in ("default", "scale_shift")

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
        """See `ResnetBlock2D`."""
        block, x = self.block, input_tensor
        added, scaling = self._time(temb)
        widest = max(block.in_channels, block.out_channels)
        hidden = _norm_act_conv(x, group_affine(x, block.norm1), block.nonlinearity, block.conv1, widest)
        if added is not None:
            hidden += added
        scale, shift = group_affine(hidden, block.norm2)
        if scaling is not None:
            scale, shift = scale * (1 + scaling[0]), shift * (1 + scaling[0]) + scaling[1]
        hidden = _norm_act_conv(hidden, (scale, shift), block.nonlinearity, block.conv2, widest)
        hidden += x if block.conv_shortcut is None else block.conv_shortcut(x)
        return hidden if block.output_scale_factor == 1 else hidden.div_(block.output_scale_factor)

    def _time(self, temb: torch.Tensor | None) -> tuple[torch.Tensor | None, tuple[torch.Tensor, torch.Tensor] | None]:
        """What the time embedding adds after the first convolution, or its (scale, shift) after the second norm."""
        block = self.block
        if block.time_emb_proj is None or temb is None:
            return None, None
        projected = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))[:, :, None, None]
        if block.time_embedding_norm == "default":
            return projected, None
        scale, shift = projected.chunk(2, dim=1)
        return None, (scale, shift)


class SlicedEnd(nn.Module):
    """The last normalisation, activation and convolution of a UNet or autoencoder, in bands."""

    def __init__(self, norm: nn.GroupNorm, act: nn.Module, conv: nn.Conv2d) -> None:
        super().__init__()
        self.norm, self.act, self.conv = norm, act, conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] -> [N, C', h, w]."""
        return _norm_act_conv(x, group_affine(x, self.norm), self.act, self.conv, self.conv.in_channels)


class SlicedUpsampling(nn.Module):
    """diffusers' Upsample2D (nearest, twice the size, then 3×3) in bands: bit-equal on a CPU."""

    def __init__(self, upsampling: Any) -> None:
        super().__init__()
        self.upsampling = upsampling
        self._field = ReceptiveField(inputs=1, outputs=2, first=(-1, 0), last=(0, 1))

    @staticmethod
    def can_slice(module: nn.Module) -> bool:
        """Whether it is one of this kind."""
        if type(module).__name__ != "Upsample2D":
            return False
        upsampling: Any = module
        return bool(upsampling.use_conv and not upsampling.use_conv_transpose and upsampling.norm is None)

    def forward(self, hidden_states: torch.Tensor, output_size: Any = None) -> torch.Tensor:
        """See `Upsample2D`; a size other than twice the input's runs unsliced."""
        height, width = hidden_states.shape[2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            result: torch.Tensor = self.upsampling(hidden_states, output_size)
            return result
        return _banded(self.upsampling, hidden_states, self._field, self.upsampling.channels)


class SlicedTokens(nn.Module):
    """A feed-forward network in slices of tokens: [N, L, D] -> [N, L, D']. Within float rounding (other tile sizes in
    the matrix products)."""

    def __init__(self, network: nn.Module, widest: int) -> None:
        """widest: features of a token where they are most."""
        super().__init__()
        self.network, self._widest = network, widest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the network."""
        parts = list(bands(x.shape[1], x.shape[0] * self._widest * x.element_size()))
        if len(parts) == 1:
            whole: torch.Tensor = self.network(x)
            return whole
        return torch.cat([self.network(x[:, start:stop]) for start, stop in parts], dim=1)


def slice_modules(network: nn.Module) -> None:
    """Replace the parts of a UNet or autoencoder that are known here by sliced ones, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if (sliced := _sliced(child)) is not None:
                setattr(module, name, sliced)
    for module in list(network.modules()):
        _slice_end(module)


def _sliced(module: nn.Module) -> nn.Module | None:
    if SlicedResnet.can_slice(module):
        return SlicedResnet(module)
    if SlicedUpsampling.can_slice(module):
        return SlicedUpsampling(module)
    if type(module).__name__ == "FeedForward":
        widths = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
        return SlicedTokens(module, max(widths))
    return None


def _slice_end(module: nn.Module) -> None:
    """Of a network with the parts conv_norm_out, conv_act and conv_out, which it calls one after another."""
    parts = dict(module.named_children())
    norm, act, conv = (parts.get(name) for name in ("conv_norm_out", "conv_act", "conv_out"))
    if not isinstance(norm, nn.GroupNorm) or act is None or not isinstance(conv, nn.Conv2d):
        return
    if conv.kernel_size == (3, 3):
        module.conv_norm_out, module.conv_act = nn.Identity(), nn.Identity()
        module.conv_out = SlicedEnd(norm, act, conv)


def slice_autoencoder(autoencoder: Any) -> None:
    """Slice an AutoencoderTiny or AutoencoderKL in place. Pictures of a batch are coded one by one, by diffusers."""
    autoencoder.enable_slicing()
    if type(autoencoder).__name__ != "AutoencoderTiny":
        slice_modules(autoencoder)
        return
    for network in (autoencoder.encoder, autoencoder.decoder):
        network.layers = BandedLayers(network.layers)


class RowByRow(nn.Module):
    """A `Denoiser` that runs one batch entry at a time: the frames of a slot, the slots of a tick. Rows do not depend
    on each other; results are within float rounding of the batch's."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`."""
        rows = [slice(row, row + 1) for row in range(latents.shape[0])]
        return torch.cat([self.denoiser(latents[row], timestep[row], _rows_of(condition, row)) for row in rows])


def _rows_of(condition: Condition, row: slice) -> Condition:
    return replace(
        condition,
        embeds=condition.embeds[row],
        pooled=None if condition.pooled is None else condition.pooled[row],
        time_ids=None if condition.time_ids is None else condition.time_ids[row],
        row=condition.row[row],
        step=condition.step[row],
        inputs={name: value[row] for name, value in condition.inputs.items()},
    )
