"""Owns the measurement of a model's step profile: uncached renders from prompts, and what reusing each step's output at
later ones would have cost. Independent of engines: a plain loop over the denoiser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from cache.features.steps.accumulated import fit_polynomial
from cache.features.steps.affine import fit_affine
from cache.features.steps.contract import relative_l1
from cache.features.steps.magnitude import magnitude_ratios

from .model import Condition, ImageModel
from .noise import NoiseSource
from .schedule import even_timesteps
from .step_caches import Quantity
from .step_profile import Pair, StepProfile
from .step_reuse import to_quantity
from .steps import STEP_FUNCTIONS, plan

_DEGREE = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Uncached renders of N prompts. latents, outputs: [T] of [N, C, h, w], before each step and as cached."""

    timesteps: tuple[int, ...]
    latents: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


@torch.inference_mode()
def uncached_run(model: ImageModel, prompts: Sequence[str], steps: int, first_seed: int = 100) -> Run:
    """Render each prompt with DDIM, from a seed of its own."""
    size, denoiser = model.size_px, model.runtime.denoiser
    factor = model.runtime.codec.factor
    shape = (model.runtime.codec.latent_channels, size[1] // factor, size[0] // factor)
    noise = [NoiseSource(1, shape, 1).locked(first_seed + n, 1).entry for n in range(len(prompts))]
    x = torch.cat(noise).to(model.device)
    texts = [model.prompts.encode(prompt) for prompt in prompts]
    times = even_timesteps(model.schedule, steps, 1.0)
    latents, outputs = [], []
    for k in plan(STEP_FUNCTIONS["ddim"], model.schedule, times):
        t = torch.full((len(prompts),), k.timestep, device=model.device)
        x0 = denoiser(x, t, _condition(model, [text.embeds for text in texts], [text.pooled for text in texts], t))
        a, b = torch.tensor(k.a), torch.tensor(k.b)
        latents.append(x)
        outputs.append(to_quantity(Quantity.NOISE, x, x0, a, b))
        x = k.a_next * x0 + k.w_eps * (x - k.a * x0) / k.b
    return Run(timesteps=times, latents=tuple(latents), outputs=tuple(outputs))


def measured_profile(
    model: ImageModel, prompts: Sequence[str], *, weights: str, made: str, steps: int = 25, gaps: int = 8
) -> StepProfile:
    """Return the profile of a model. weights: their digest. made: the command. gaps: longest reuse, in steps."""
    run = uncached_run(model, prompts, steps)
    outputs = run.outputs
    pairs = tuple(
        tuple(_pair(outputs[step], outputs[step - gap]) for gap in range(1, min(step, gaps) + 1))
        for step in range(steps)
    )
    moved, changed = (_changes(values) for values in (run.latents, outputs))
    tokens = [output.flatten(2).transpose(1, 2) for output in outputs]
    return StepProfile(
        model=model.name,
        weights=weights,
        made=made,
        timesteps=run.timesteps,
        pairs=pairs,
        ratios=_rounded(magnitude_ratios(tokens)),
        polynomial=fit_polynomial(moved, changed, _DEGREE),
    )


def _pair(true: torch.Tensor, cached: torch.Tensor) -> Pair:
    a, b = fit_affine(true, cached)
    y, x = true.double(), cached.double()
    factor = float((x * y).sum() / x.square().sum())
    return Pair(
        change=_round(float((y - x).abs().mean())),
        error=_round(float(relative_l1(x, y).mean())),
        a=_rounded(a.tolist()),
        b=_rounded(b.tolist()),
        factor=_round(factor),
        bias=_rounded((y - factor * x).mean((0, 2, 3)).tolist()),
    )


def _changes(values: Sequence[torch.Tensor]) -> list[float]:
    """Return the relative L1 changes between neighbouring steps, of every row."""
    pairs = zip(values[1:], values[:-1], strict=True)
    return [float(d) for now, before in pairs for d in relative_l1(now, before)]


def _condition(
    model: ImageModel, embeds: Sequence[torch.Tensor], pooled: Sequence[torch.Tensor | None], t: torch.Tensor
) -> Condition:
    given = [p for p in pooled if p is not None]
    sizes = [[*model.size_px[::-1], 0, 0, *model.size_px[::-1]]] * len(embeds)
    return Condition(
        embeds=torch.stack(list(embeds)),
        pooled=torch.stack(given) if given else None,
        time_ids=torch.tensor(sizes, dtype=torch.float32, device=model.device) if model.wants_time_ids else None,
        row=t,
        step=t,
    )


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(_round(value) for value in values)
