"""Owns the correction of a reused feature by one factor and one offset per channel (CacheQuant, Liu et al. 2025, arXiv
2503.01323, decoupled error correction), by least squares. Independent of what is cached.

a = cov(true, cached) / var(cached), b = mean(true) - a mean(cached), over everything but the channel.
"""

from __future__ import annotations

import torch


def fit_affine(true: torch.Tensor, cached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """true, cached: [N, C, ...]. Returns a, b, each [C] float64; a = 1 in a channel whose cached values are
    constant."""
    y, x = (t.double().transpose(0, 1).flatten(1) for t in (true, cached))
    my, mx = y.mean(1), x.mean(1)
    covariance = ((y - my[:, None]) * (x - mx[:, None])).mean(1)
    variance = (x - mx[:, None]).square().mean(1)
    a = torch.where(variance > 0, covariance / variance, 1.0)
    return a, my - a * mx


def apply_affine(cached: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a cached + b. cached: [N, C, ...]. a, b: [N, C] or [C], of its dtype."""
    shape = (*a.shape, *[1] * (cached.dim() - 2))
    return a.view(shape) * cached + b.view(shape)


class RunningAffine:
    """The same fit from running means, to learn between refreshes: of each row, an exponential average of the moments.

    Device tensors only; nothing waits. State [rows, C] five times, float32 or the given dtype.
    """

    def __init__(self, rows: int, channels: int, *, decay: float, device: torch.device | str = "cpu") -> None:
        """decay: in [0, 1), the weight of what was seen before."""
        assert 0 <= decay < 1, decay
        self._decay = decay
        self._moments = torch.zeros((5, rows, channels), device=device)  # x, y, x^2, xy, weight

    def clear(self, rows: torch.Tensor) -> None:
        """Forget rows [N] int64: their correction is the identity until the next `update`."""
        self._moments.index_fill_(1, rows, 0.0)

    def update(self, rows: torch.Tensor, true: torch.Tensor, cached: torch.Tensor) -> None:
        """Take what rows [N] would have reused and what was computed instead, [N, C, ...] each."""
        x, y = cached.float().flatten(2), true.float().flatten(2)
        seen = torch.stack([x.mean(2), y.mean(2), x.square().mean(2), (x * y).mean(2), torch.ones_like(x[..., 0])])
        before = self._moments.index_select(1, rows)
        self._moments.index_copy_(1, rows, self._decay * before + (1 - self._decay) * seen)

    def correction(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a, b, each [N, C]; 1 and 0 where nothing was seen or the cached values are constant."""
        mx, my, mxx, mxy, weight = self._moments.index_select(1, rows)
        seen = weight > 0
        w = torch.where(seen, weight, 1.0)
        mx, my, mxx, mxy = mx / w, my / w, mxx / w, mxy / w
        variance = mxx - mx * mx
        usable = seen & (variance > 1e-12)
        a = torch.where(usable, (mxy - mx * my) / torch.where(usable, variance, 1.0), 1.0)
        return a, torch.where(seen, my - a * mx, 0.0)
