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
from .step_profile import Pair, StepProfile
from .steps import STEP_FUNCTIONS, StepCoefficients, plan

_DEGREE = 4
_WIDEST = 3  # steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Uncached renders of N prompts. steps: their coefficients. latents, noises: [T] of [N, C, h, w], the latents
    before each step and the noise predicted from them."""

    steps: tuple[StepCoefficients, ...]
    latents: tuple[torch.Tensor, ...]
    noises: tuple[torch.Tensor, ...]

    def velocity(self, step: int, noise: torch.Tensor) -> torch.Tensor:
        """Return a eps - b x0 at a step for a predicted noise: (eps - b x) / a. Its errors weigh the same at all steps:
        a step moves the latents along it by the angle between two levels."""
        k = self.steps[step]
        return (noise - k.b * self.latents[step]) / k.a


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
    latents, noises, coefficients = [], [], plan(STEP_FUNCTIONS["ddim"], model.schedule, times)
    for k in coefficients:
        t = torch.full((len(prompts),), k.timestep, device=model.device)
        x0 = denoiser(x, t, _condition(model, [text.embeds for text in texts], [text.pooled for text in texts], t))
        latents.append(x)
        noises.append((x - k.a * x0) / k.b)
        x = k.a_next * x0 + k.w_eps * noises[-1]
    return Run(steps=coefficients, latents=tuple(latents), noises=tuple(noises))


def measured_profile(
    model: ImageModel, prompts: Sequence[str], *, weights: str, made: str, steps: int = 25, gaps: int = 8
) -> StepProfile:
    """Return the profile of a model. weights: their digest. made: the command. gaps: longest reuse, in steps."""
    run = uncached_run(model, prompts, steps)
    pairs = tuple(tuple(_pair(run, step, step - gap) for gap in range(1, min(step, gaps) + 1)) for step in range(steps))
    velocities = [run.velocity(step, noise) for step, noise in enumerate(run.noises)]
    return StepProfile(
        model=model.name,
        weights=weights,
        made=made,
        timesteps=tuple(k.timestep for k in run.steps),
        pairs=pairs,
        ratios=_rounded(magnitude_ratios([v.flatten(2).transpose(1, 2) for v in velocities])),
        polynomial=_rounded(fit_polynomial(*_changes(run), _DEGREE)),
    )


def _pair(run: Run, step: int, cached: int) -> Pair:
    """Return what reusing the noise of step `cached` at a later one costs."""
    y, x = run.noises[step].double(), run.noises[cached].double()
    true, held = run.velocity(step, y), run.velocity(step, x)
    a, b = fit_affine(y, x)
    factor = float((x * y).sum() / x.square().sum())
    return Pair(
        change=_round(float((held - true).abs().mean())),
        error=_round(float(relative_l1(held, true).mean())),
        a=_rounded(a.tolist()),
        b=_rounded(b.tolist()),
        factor=_round(factor),
        bias=_rounded((y - factor * x).mean((0, 2, 3)).tolist()),
    )


def _changes(run: Run) -> tuple[list[float], list[float]]:
    """Return how far the latents, and the velocities with the noise held, are apart in steps 1 to 3 apart: relative L1
    distances of every row. The wider gaps stand for renders of fewer steps."""
    moved: list[float] = []
    changed: list[float] = []
    for gap in range(1, _WIDEST + 1):
        for step in range(gap, len(run.steps)):
            moved += relative_l1(run.latents[step], run.latents[step - gap]).tolist()
            held = run.velocity(step, run.noises[step - gap])
            changed += relative_l1(held, run.velocity(step, run.noises[step])).tolist()
    return moved, changed


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
