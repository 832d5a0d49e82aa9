"""Owns an image runtime whose denoiser has a feature bank, made from one that has none.

Weights are shared with the given runtime, which is left as it is: while no stream uses a bank, it runs. Independent of
backends and of streams. docs/caching-bank.md describes the bank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipelines.conditioning.feature_bank import FEATURE_BANK
from pipelines.image.loading.networks import UNetDenoiser
from pipelines.image.loading.text_projection import same_parameters
from pipelines.image.model import Condition, ImageRuntime

from .attention import BankAttention, CurrentPass
from .memory import BankConfig, BankMemory, layer_shapes, self_attentions

_DEFAULT = BankConfig()


class BankDenoiser:
    """A `Denoiser` that lets each entry of a batch use its line of a bank.

    memory: what it keeps from call to call, so calls must not overlap.
    """

    def __init__(self, plain: UNetDenoiser, memory: BankMemory) -> None:
        self.memory = memory
        self._current = CurrentPass()
        self._denoiser = same_parameters(plain)
        for name, module in self_attentions(self._denoiser.unet):
            module.set_processor(BankAttention(memory.layers[name], self._current, memory.threshold))

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """See `pipelines.image.model.Denoiser`. condition.inputs has the columns of the bank's conditioner."""
        assert condition.negative is not None
        states, inputs = self.memory.states, dict(condition.inputs)
        lines = states.begin(inputs.pop(FEATURE_BANK), condition.step, condition.negative)
        self._current.lines = lines
        try:
            x0: torch.Tensor = self._denoiser(latents, timestep, replace(condition, inputs=inputs))
        finally:
            self._current.lines = None
        states.end(lines)
        return x0


def bank_obstacle(runtime: ImageRuntime) -> str | None:
    """Return why this runtime's denoiser cannot have a feature bank, as a clause; None if it can."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    if isinstance(runtime.denoiser, BankDenoiser):
        return None
    if not isinstance(runtime.denoiser, UNetDenoiser):
        return f"the backend {runtime.backend} does not run the UNet itself, and compiled plans have no room for it"
    attentions = self_attentions(runtime.denoiser.unet)
    if not attentions:
        return "the network has no self-attention"
    for name, module in attentions:
        if type(module.processor) is not AttnProcessor2_0:
            return f"{name} has an attention processor of its own, {type(module.processor).__name__}"
        norms = (module.norm_q, module.norm_k, module.group_norm, module.spatial_norm)
        if any(part is not None for part in norms) or not isinstance(module.to_k, nn.Linear):
            return f"{name} is not a plain self-attention"
    return None


def bank_runtime(
    plain: ImageRuntime,
    latent_size: tuple[int, int],
    *,
    lines: int,
    config: BankConfig = _DEFAULT,
    old: ImageRuntime | None = None,
) -> ImageRuntime:
    """Return `plain` with a denoiser that has a bank of so many lines. There must be no `bank_obstacle`.

    latent_size: (height, width). old: a runtime with a smaller bank, whose lines are taken over. Ticks do not overlap:
    the bank that one tick writes is read by the next.
    """
    denoiser = plain.denoiser
    assert isinstance(denoiser, UNetDenoiser), denoiser
    weights = next(iter(denoiser.unet.parameters()))
    memory = BankMemory(
        layer_shapes(denoiser.unet, latent_size),
        lines,
        config,
        device=weights.device,
        dtype=weights.dtype,
        old=bank_of(old),
    )
    return replace(plain, denoiser=BankDenoiser(denoiser, memory), lanes=1)


def bank_of(runtime: ImageRuntime | None) -> BankMemory | None:
    """Return the bank of a runtime that `bank_runtime` made, else None."""
    denoiser: Any = None if runtime is None else runtime.denoiser
    return denoiser.memory if isinstance(denoiser, BankDenoiser) else None
