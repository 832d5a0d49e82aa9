"""Owns the optimiser of the teacher: orthogonalised momentum for weight matrices, AdamW for everything else.

Muon (Jordan et al. 2024): the momentum of a matrix is replaced by the nearest semi-orthogonal matrix, found by five
Newton-Schulz iterations; the update is scaled to AdamW's typical size (Liu et al. 2025, Muon is Scalable, section 2.2),
so that both share a learning rate. Convolutions are treated as matrices [out, in * height * width].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .session import adamw

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
UPDATE_RMS = 0.2
SMALLEST_SIDE = 32
"""Matrices with a shorter side (input and output convolutions) use AdamW."""


def orthogonalised(matrices: Tensor) -> Tensor:
    """Approximate polar factors of matrices [B, m, n]: singular values near 1 (0.7 to 1.2); computed in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(torch.bfloat16 if x.is_cuda else x.dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    factors: Tensor = x if wide else x.transpose(1, 2)
    return factors.to(matrices.dtype)


class Muon:
    """parameters: matrices and convolutions with both sides >= 32 use Muon, the rest fused AdamW."""

    def __init__(
        self, parameters: list[nn.Parameter], embeddings: set[int], rate: float, *, decay: float = 0.01
    ) -> None:
        """embeddings: id() of parameters that are look-up tables: always AdamW."""
        self.decay = decay
        shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        others: list[nn.Parameter] = []
        for p in parameters:
            rows, columns = p.shape[0], p.numel() // p.shape[0]
            if p.ndim < 2 or min(rows, columns) < SMALLEST_SIDE or id(p) in embeddings:
                others.append(p)
            else:
                shapes.setdefault((rows, columns), []).append(p)
        self.stacks = [(shape, group, torch.zeros(len(group), *shape, device=group[0].device))
                       for shape, group in shapes.items()]  # fmt: skip
        self.adam = adamw(others, rate, others[0].device, decay=decay)
        self.param_groups: list[dict[str, Any]] = self.adam.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """One update from the current gradients; Nesterov momentum 0.95. The rate may be a tensor (captured steps)."""
        rate = self.param_groups[0]["lr"]
        for (rows, columns), group, momentum in self.stacks:
            gradient = torch.stack([p.grad.reshape(rows, columns) for p in group if p.grad is not None])
            momentum.lerp_(gradient, 0.05)
            update = orthogonalised(gradient.lerp(momentum, 0.95))
            scale = -rate * UPDATE_RMS * max(rows, columns) ** 0.5
            for p, u in zip(group, update, strict=True):
                p.mul_(1 - rate * self.decay).add_(u.reshape(p.shape) * scale)
        self.adam.step()
