"""Owns the pass of a causal video transformer as a module of positional tensors, for compilers and exporters.

The keys and values of the past are inputs; only those of the pass itself are outputs, which the caller stores.
Independent of caches, backends and engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from cache.rotary import Rotary
from pipelines.core.parts import Part, Tensors

from .wan.attention import PLAIN, AttentionBackend
from .wan.blocks import BlockContext, BlockExecution
from .wan.text_cache import KeysValues
from .wan.transformer import CausalWanTransformer

PASS_INPUTS = (
    "latents",
    "timesteps",
    "text_keys",
    "text_values",
    "past_keys",
    "past_values",
    "cos",
    "sin",
)
"""The inputs of a pass; those of conditioners (actions) follow, by name."""


class _GivenPast:
    """A `KeyValueView` of one pass: attends to the given past and to itself, and collects its own keys and values."""

    observes = False

    def __init__(self, rotary: Rotary, past: KeysValues, rotation: KeysValues) -> None:
        self._rotary, self._past, self.query_rotation = rotary, past, rotation
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def observe(self, layer: int, queries: torch.Tensor) -> None:
        """Nothing to do."""

    def exchange(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> KeysValues:
        self.keys.append(keys)
        self.values.append(values)
        rotated = self._rotary.rotate(keys, *self.query_rotation)
        return (
            torch.cat((self._past[0][layer], rotated.to(self._past[0].dtype)), dim=1),
            torch.cat((self._past[1][layer], values), dim=1),
        )


class _SwappedPairs(Rotary):
    """`Rotary` that multiplies whole heads: x c + x' s, the pairs of x' exchanged, c and s from `whole`. The result is
    equal bit for bit. `rotate_pairs` interleaves its halves, which OpenVINO copies number by number: a quarter of the
    time of mini-video's pass.
    """

    def __init__(self, head_dim: int, exchanged: torch.Tensor) -> None:
        """exchanged: 1, 0, 3, 2, ..."""
        super().__init__(head_dim)
        self._exchanged = exchanged

    @staticmethod
    def whole(cos: torch.Tensor, sin: torch.Tensor) -> KeysValues:
        """[..., D/2] twice -> [..., D] twice, (c, c, ...) and (-s, s, ...)."""
        return torch.stack((cos, cos), -1).flatten(-2), torch.stack((-sin, sin), -1).flatten(-2)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As `Rotary.rotate`; cos, sin: from `whole`."""
        return (x * cos + x.index_select(-1, self._exchanged) * sin).to(x.dtype)


class _GivenText:
    """A `TextView` of given keys and values."""

    signature = None

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._keys, self._values = keys, values

    def exchange(self, layer: int, compute: Callable[[torch.Tensor], KeysValues]) -> KeysValues:
        return self._keys[layer], self._values[layer]


class PassPart(nn.Module):
    """One pass over B rows of F latent frames, N tokens together, with M past tokens.

    latents [B, C, F, h, w], timesteps [B, F] float32, text_keys, text_values [layers, B, L, heads, D], past_keys
    (rotated), past_values [layers, B, M, heads, D], cos, sin [B, N, 1, D/2] float32, then conditioners' inputs ->
    (velocity [B, C, F, h, w], keys (not rotated), values [layers, B, N, heads, D]).
    """

    def __init__(
        self, transformer: CausalWanTransformer, names: tuple[str, ...], attention: AttentionBackend = PLAIN
    ) -> None:
        super().__init__()
        assert names[: len(PASS_INPUTS)] == PASS_INPUTS, names
        self.transformer, self._names = transformer, names
        self._execution = BlockExecution(attention=attention)

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        given = dict(zip(self._names, inputs, strict=True))
        latents, timesteps = given.pop("latents"), given.pop("timesteps")
        text = _GivenText(given.pop("text_keys"), given.pop("text_values"))
        past = given.pop("past_keys"), given.pop("past_values")
        view = _GivenPast(self.transformer.rotary, past, (given.pop("cos"), given.pop("sin")))
        velocity = self.transformer(latents, timesteps, text, view, execution=self._execution, **given)
        return velocity, torch.stack(view.keys), torch.stack(view.values)


TIMED_INPUTS = ("latents", "embedding", "time", *PASS_INPUTS[2:])
"""The inputs of a pass whose timesteps and conditioners' inputs were embedded before, see `TimedPassPart`."""


class TimedPassPart(nn.Module):
    """`PassPart` after the time embedding, whose angles (up to 1000) must not be rounded to 16 bits, as a compiler that
    lowers everything would.

    embedding [B, F, dim] and time [B, F, 6, dim], of `ConditionEmbedder.time` with the actions' addend, replace the
    timesteps and the conditioners' inputs. Inputs are `TIMED_INPUTS`.
    """

    def __init__(self, transformer: CausalWanTransformer, attention: AttentionBackend = PLAIN) -> None:
        super().__init__()
        self.transformer = transformer
        self._execution = BlockExecution(attention=attention)
        self.exchanged: torch.Tensor
        exchanged = torch.arange(transformer.head_dim, device=transformer.device).view(-1, 2).flip(-1).flatten()
        self.register_buffer("exchanged", exchanged, persistent=False)

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        given = dict(zip(TIMED_INPUTS, inputs, strict=True))
        net, latents = self.transformer, given["latents"]
        text = _GivenText(given["text_keys"], given["text_values"])
        rotary = _SwappedPairs(net.head_dim, self.exchanged)
        past, rotation = (given["past_keys"], given["past_values"]), rotary.whole(given["cos"], given["sin"])
        view = _GivenPast(rotary, past, rotation)
        shared = BlockContext(time=given["time"], text=text, kv=view, rotary=rotary, execution=self._execution)
        hidden = net.embed_patches(latents)
        for layer, block in enumerate(net.blocks):
            hidden = block(hidden, layer, shared)
        velocity = net.head(hidden, given["embedding"], net.grid(*latents.shape[-2:]))
        return velocity, torch.stack(view.keys), torch.stack(view.values)


def timed_pass_part(transformer: CausalWanTransformer, inputs: Mapping[str, torch.Tensor]) -> Part:
    """Return the pass at the shapes of `inputs`, which are `TIMED_INPUTS`."""
    assert tuple(inputs) == TIMED_INPUTS, tuple(inputs)
    return Part(name="pass", module=TimedPassPart(transformer), inputs=inputs)


def pass_part(transformer: CausalWanTransformer, inputs: Mapping[str, torch.Tensor]) -> Part:
    """Return the pass at the shapes of `inputs`: `PASS_INPUTS`, then conditioners' by name."""
    return Part(name="pass", module=PassPart(transformer, tuple(inputs)), inputs=inputs)
