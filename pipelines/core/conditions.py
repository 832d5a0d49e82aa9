"""Owns text conditions: encoded prompts (cached), weighted blends and timed transitions.

Independent of rings and slots: it provides the current condition, and the text conditioner writes it where it belongs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch

from .controls import Controls

_CACHED_TEXTS = 64
_PARALLEL = 1e-4  # sine of the angle below which interpolation is linear


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextCondition:
    """One encoded prompt, float32 on the model's device.

    embeds: [L, D]. pooled: [P], or None where the model takes none (SDXL-class models do).
    """

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None


class PromptEncoder(Protocol):
    """Encodes a text. Runs outside of ticks; results may be cached by text."""

    def encode(self, text: str) -> TextCondition: ...


class PromptCache:
    """A bounded cache of encoded texts, by text; the least recently used is evicted first."""

    def __init__(self, encoder: PromptEncoder, capacity: int = _CACHED_TEXTS) -> None:
        self._encoder = encoder
        self._capacity = capacity
        self._conditions: OrderedDict[str, TextCondition] = OrderedDict()

    def encode(self, text: str) -> TextCondition:
        """Return the condition of one text, encoded unless it is cached."""
        condition = self._conditions.get(text)
        if condition is None:
            condition = self._encoder.encode(text)
            if len(self._conditions) >= self._capacity:
                self._conditions.popitem(last=False)
            self._conditions[text] = condition
        self._conditions.move_to_end(text)
        return condition

    def clear(self) -> None:
        """Evict everything (the text encoder has changed)."""
        self._conditions.clear()


Mix = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def linear(start: torch.Tensor, end: torch.Tensor, fraction: float) -> torch.Tensor:
    """start + fraction (end - start). [..., D] -> [..., D]."""
    return torch.lerp(start, end, fraction)


def slerp(start: torch.Tensor, end: torch.Tensor, fraction: float) -> torch.Tensor:
    """Spherical linear interpolation of each vector along the last axis (Shoemake 1985); norms change linearly.

    (Nearly) parallel vectors are interpolated linearly. [..., D] -> [..., D].
    """
    norm_start, norm_end = (v.norm(dim=-1, keepdim=True) for v in (start, end))
    tiny = torch.finfo(start.dtype).tiny
    u, v = start / norm_start.clamp_min(tiny), end / norm_end.clamp_min(tiny)
    angle = torch.acos((u * v).sum(-1, keepdim=True).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    safe = torch.where(sine.abs() < _PARALLEL, torch.ones_like(sine), sine)
    arc = (torch.sin((1.0 - fraction) * angle) * u + torch.sin(fraction * angle) * v) / safe
    arc = arc * torch.lerp(norm_start, norm_end, fraction)
    return torch.where(sine.abs() < _PARALLEL, torch.lerp(start, end, fraction), arc)


BLENDS: Mapping[str, Mix] = MappingProxyType({"linear": linear, "slerp": slerp})
"""By value of the control `prompt_blend`."""


def mix_conditions(start: TextCondition, end: TextCondition, fraction: float, mix: Mix) -> TextCondition:
    """Interpolate from start (exactly, at fraction 0) to end (exactly, at 1)."""
    if fraction <= 0.0:
        return start
    if fraction >= 1.0:
        return end
    pooled = None
    if start.pooled is not None and end.pooled is not None:
        pooled = mix(start.pooled, end.pooled, fraction)
    return TextCondition(embeds=mix(start.embeds, end.embeds, fraction), pooled=pooled)


def blend(conditions: Sequence[TextCondition], weights: Sequence[float], mix: Mix) -> TextCondition:
    """Blend by weights (> 0, relative). Each condition is mixed in by its share of the total weight so far."""
    result, total = conditions[0], weights[0]
    for condition, weight in zip(conditions[1:], weights[1:], strict=True):
        total += weight
        result = mix_conditions(result, condition, weight / total, mix)
    return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConditionPair:
    """The condition of the prompt and that of the negative prompt."""

    positive: TextCondition
    negative: TextCondition


def encode_controls(texts: PromptCache, controls: Controls) -> ConditionPair:
    """Encode the prompts and the negative prompt of `controls`. Without a prompt: the empty text."""
    prompts = controls.prompt
    encoded = [texts.encode(p.text) for p in prompts] or [texts.encode("")]
    positive = blend(encoded, [p.weight for p in prompts] or [1.0], BLENDS[controls.prompt_blend])
    return ConditionPair(positive=positive, negative=texts.encode(controls.negative_prompt))


class Transition:
    """The condition of a stream on its way to a target. version: grows with every change of `now` by `advance`."""

    def __init__(self, pair: ConditionPair) -> None:
        self._start = pair
        self._target = pair
        self._mix: Mix = linear
        self._frames = 0
        self._done = 0
        self.now = pair
        self.version = 0

    @property
    def moving(self) -> bool:
        """Whether `advance` still changes anything."""
        return self.now is not self._target

    def set_target(self, target: ConditionPair, *, frames: int, mix: Mix) -> None:
        """Start moving from the current condition to `target`, over `frames` frames; 0: all at the next `advance`."""
        self._start, self._target = self.now, target
        self._frames, self._done, self._mix = frames, 0, mix

    def advance(self, frames: int) -> None:
        """Advance by `frames` frames."""
        if not self.moving:
            return
        self._done += frames
        fraction = 1.0 if self._done >= self._frames else self._done / self._frames
        self.now = self._target if fraction >= 1.0 else self._between(fraction)
        self.version += 1

    def _between(self, fraction: float) -> ConditionPair:
        return ConditionPair(
            positive=mix_conditions(self._start.positive, self._target.positive, fraction, self._mix),
            negative=mix_conditions(self._start.negative, self._target.negative, fraction, self._mix),
        )
