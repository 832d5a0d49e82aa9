"""Owns the parts that reuse adds to an image model, as modules of positional tensors, for compilers.

"whole" is the denoiser that also returns what windows need; "window" computes windows. Independent of backends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from cache.features.lines import Features
from pipelines.core.parts import Part, Tensors
from pipelines.image.model import Condition
from pipelines.image.parts import DenoisePart, denoise_inputs

from .networks import TapedDenoiser
from .tape import Recording, Replaying

_MAP, _TOKENS, _SCALES, _PLACE = "map_", "tokens_", "scales", "place_"


class WholePart(DenoisePart):
    """(latents, timestep, embeds, ...) -> x0, maps of all levels, tokens of those that have any, scales."""

    def __init__(self, taped: TapedDenoiser, names: Sequence[str]) -> None:
        super().__init__(taped.denoiser, names)
        self._using, self._levels, self._token_levels = taped.using, taped.levels, taped.token_levels

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        tape = Recording(rows=inputs[0].shape[2], levels=self._levels)
        with self._using(tape):
            (x0,) = super().forward(*inputs)
        kept = tape.features()
        return (x0, *kept.maps, *(kept.tokens[level] for level in self._token_levels), kept.scales)


class WindowPart(DenoisePart):
    """The inputs of `WholePart`, cut to windows, then what surrounds them -> x0, maps, tokens of what was computed."""

    def __init__(self, taped: TapedDenoiser, names: Sequence[str]) -> None:
        """names: of the inputs, those of `window_inputs`."""
        around = _around_names(taped.levels, taped.token_levels)
        super().__init__(taped.denoiser, names[: len(names) - len(around)])
        self._around = len(around)
        self.cell = taped.cell
        self._using, self._levels, self._token_levels = taped.using, taped.levels, taped.token_levels

    def whole(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, Features]:
        """Run the denoiser on whole pictures. inputs: those of `WholePart`. Returns x0 and what windows need."""
        tape = Recording(rows=inputs[0].shape[2], levels=self._levels)
        with self._using(tape):
            (x0,) = super().forward(*inputs)
        return x0, tape.features()

    def around(self, own: Sequence[torch.Tensor], around: Features, places: Sequence[torch.Tensor]) -> Tensors:
        """Return the inputs, in order: own, those of `WholePart` for windows, then what surrounds them."""
        return (*own, *_around(around, places, self._token_levels))

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        own, around = inputs[: -self._around], inputs[-self._around :]
        maps, rest = around[: self._levels], around[self._levels :]
        count = len(self._token_levels)
        tokens, scales, places = rest[:count], rest[count], rest[count + 1 :]
        kept = Features(
            maps=maps, tokens=_at_levels(tokens, self._token_levels, self._levels, (0, 0, 0)), scales=scales
        )
        places = _at_levels(places, self._token_levels, self._levels, (0,))
        tape = Replaying(rows=own[0].shape[2], kept=kept, places=places)
        with self._using(tape):
            (x0,) = super().forward(*own)
        computed = tape.features()
        return (x0, *computed.maps, *(computed.tokens[level] for level in self._token_levels))


def _at_levels(
    given: Sequence[torch.Tensor], levels: Sequence[int], count: int, empty: tuple[int, ...]
) -> tuple[torch.Tensor, ...]:
    """Return a tensor for each of `count` levels; those without one get an empty one."""
    found = dict(zip(levels, given, strict=True))
    like = given[0] if given else torch.zeros(1)
    return tuple(found[level] if level in found else like.new_zeros((like.shape[0], *empty)) for level in range(count))


def _around(around: Features, places: Sequence[torch.Tensor], token_levels: Sequence[int]) -> list[torch.Tensor]:
    tokens, chosen = ([given[level] for level in token_levels] for given in (around.tokens, places))
    return [*around.maps, *tokens, around.scales, *chosen]


def _around_names(levels: int, token_levels: Sequence[int]) -> list[str]:
    maps = [f"{_MAP}{level}" for level in range(levels)]
    tokens = [f"{_TOKENS}{level}" for level in token_levels]
    return [*maps, *tokens, _SCALES, *(f"{_PLACE}{level}" for level in token_levels)]


def window_inputs(
    taped: TapedDenoiser,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    condition: Condition,
    around: Features,
    places: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the inputs of the window part, by name and in order, of one call of `WindowNetworks.windows`."""
    names, given = _around_names(taped.levels, taped.token_levels), _around(around, places, taped.token_levels)
    return {**denoise_inputs(latents, timestep, condition), **dict(zip(names, given, strict=True))}


def whole_part(taped: TapedDenoiser, inputs: dict[str, torch.Tensor]) -> Part:
    """Return the whole part at the shapes of `inputs`, which `denoise_inputs` made."""
    return Part(name="whole", module=WholePart(taped, tuple(inputs)), inputs=inputs)


def window_part(taped: TapedDenoiser, inputs: dict[str, torch.Tensor]) -> Part:
    """Return the window part at the shapes of `inputs`, which `window_inputs` made."""
    return Part(name="window", module=WindowPart(taped, tuple(inputs)), inputs=inputs)


REUSE_PARTS: Mapping[str, Callable[[TapedDenoiser, dict[str, torch.Tensor]], Part]] = MappingProxyType(
    {"whole": whole_part, "window": window_part}
)
"""By name of the part."""


class PartWindows:
    """`pipelines.image.model.WindowNetworks` over calls of the two parts.

    whole, window: take the inputs by name and return the outputs, valid until their next call.
    """

    few_sizes = True

    def __init__(
        self,
        taped: TapedDenoiser,
        whole: Callable[[Mapping[str, torch.Tensor]], Tensors],
        window: Callable[[Mapping[str, torch.Tensor]], Tensors],
    ) -> None:
        self._taped, self._whole, self._window = taped, whole, window
        self.cell = taped.cell

    def whole(
        self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition
    ) -> tuple[torch.Tensor, Features]:
        """See `pipelines.image.model.WindowNetworks`."""
        x0, *kept, scales = self._whole(denoise_inputs(latents, timestep, condition))
        return x0, self._features(kept, scales)

    def windows(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        condition: Condition,
        around: Features,
        places: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, Features]:
        """See `pipelines.image.model.WindowNetworks`."""
        x0, *computed = self._window(window_inputs(self._taped, latents, timestep, condition, around, places))
        return x0, self._features(computed, around.scales[:, :0])

    def _features(self, kept: Sequence[torch.Tensor], scales: torch.Tensor) -> Features:
        levels, token_levels = self._taped.levels, self._taped.token_levels
        maps, tokens = kept[:levels], kept[levels:]
        return Features(maps=tuple(maps), tokens=_at_levels(tokens, token_levels, levels, (0, 0, 0)), scales=scales)
