"""A plain sequential denoiser, written from the papers: one frame, one step, one batch of one at a time.

Independent of the engine's arithmetic, so that no error is shared. Formulas: docs/engine.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

Predict = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""(latents [1, C, h, w], timestep, text [1, L, D]) -> predicted noise [1, C, h, w]."""


MANY_STEPS = ("ddim", "dpmpp")


@dataclass(kw_only=True)
class Trace:
    """Results of each step of one frame: guided noise, latents afterwards (x_hat after the last) and stock noise."""

    eps: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    stock: list[torch.Tensor] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)  # b / a of each step: how much an error of eps is amplified


def lcm_timesteps(steps: int, strength: float) -> list[int]:
    """Return `steps` of 50 evenly spaced timesteps up to `strength`, evenly chosen from the noisiest on."""
    origin = [20 * i - 1 for i in range(1, int(50 * strength) + 1)][::-1]
    return [origin[int(i * len(origin) / steps)] for i in range(steps)]


def slot_timesteps(step_function: str, steps: int, strength: float) -> list[int]:
    """Return the timesteps of a slot: LCM's, or evenly spaced from the top for the many-step functions."""
    if step_function not in MANY_STEPS:
        return lcm_timesteps(steps, strength)
    top = round(1000 * strength)
    return [round(top - i * top / steps) - 1 for i in range(steps)]


@dataclass(kw_only=True)
class Sequential:
    """alphas: abar_t. g, delta: guidance scale and the factor of the stock noise."""

    predict: Predict
    alphas: np.ndarray
    step_function: str = "lcm"
    mode: str = "none"
    g: float = 1.0
    delta: float = 1.0

    def run(
        self,
        z: torch.Tensor | None,
        noise: Sequence[torch.Tensor],
        timesteps: Sequence[int],
        text: torch.Tensor,
        negative: torch.Tensor,
        given: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> Trace:
        """z: clean latents [1, C, h, w] or None (prompt-only). noise: one for the entry, one for each later step.

        given: (latents, stock) from which later steps start instead of the preceding step's result, so that each step
        is judged alone.
        """
        trace = Trace()
        x = noise[0] if z is None else self._a(timesteps[0]) * z + self._b(timesteps[0]) * noise[0]
        stock = noise[0]
        x_last = None
        for i, t in enumerate(timesteps):
            if given and i > 0:
                x, stock = given[i - 1]
            a, b = self._a(t), self._b(t)
            eps_c = self.predict(x, t, text)
            if self.mode == "full":
                eps_u = self.predict(x, t, negative)
            elif self.mode == "onetime" and i == 0:
                stock = self.predict(x, t, negative)
                eps_u = self.delta * stock
            else:
                eps_u = self.delta * stock
            guided = self.mode != "none" and self.g > 1
            eps = eps_u + self.g * (eps_c - eps_u) if guided else eps_c
            x_hat = self._consistent(x, eps, t)
            last = i == len(timesteps) - 1
            if last:
                x = x_hat
            else:
                t_next = timesteps[i + 1]
                a_next, b_next = self._a(t_next), self._b(t_next)
                added = eps if self.step_function in ("tcd", *MANY_STEPS) else noise[i + 1]
                bend = torch.zeros_like(x)
                if self.step_function == "dpmpp" and i > 0:
                    assert x_last is not None
                    bend = self._second_order(timesteps[i - 1 : i + 2]) * (x_hat - x_last)
                x = a_next * x_hat + b_next * added + bend
                stock = added + (a_next * self._consistent(b * stock, eps, t) + bend) / b_next
                x_last = x_hat
            trace.eps.append(eps)
            trace.latents.append(x)
            trace.stock.append(stock)
            trace.ratio.append(b / a)
        return trace

    def _second_order(self, times: Sequence[int]) -> float:
        """alpha' (1 - exp(-h)) / (2 r), of the steps before, at and after t (Lu et al. 2022, algorithm 2)."""
        last, now, following = (math.log(self._a(t) / self._b(t)) for t in times)
        h = following - now
        return self._a(times[2]) * (1 - math.exp(-h)) * h / (2 * (now - last))

    def _a(self, t: int) -> float:
        return math.sqrt(self.alphas[t])

    def _b(self, t: int) -> float:
        return math.sqrt(1 - self.alphas[t])

    def _consistent(self, u: torch.Tensor, eps: torch.Tensor, t: int) -> torch.Tensor:
        x0 = (u - self._b(t) * eps) / self._a(t)
        if self.step_function != "lcm":
            return x0
        c_skip = 0.25 / ((10 * t) ** 2 + 0.25)
        c_out = 10 * t / math.sqrt((10 * t) ** 2 + 0.25)
        return c_out * x0 + c_skip * u
