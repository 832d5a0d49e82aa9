"""Owns rotary position embeddings in three axes (time, row, column), real-valued, with interleaved pairs, as in Wan.

No table of positions is kept, so length and size are unbounded. Independent of caches, layers and models.
"""

from __future__ import annotations

import math

import torch

_HALF = (torch.float16, torch.bfloat16)


def split_head(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that carry (time, row, column): Wan's split, D - 4 (D // 6), 2 (D // 6), 2 (D // 6).

    128 -> (44, 42, 42); 32 -> (12, 10, 10); 16 -> (8, 4, 4).
    """
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the interleaved pairs (x[2j], x[2j+1]) of the last axis by angles given as cosines and sines.

    x: [..., D], any float dtype, e.g. [B, N, H, D]. cos, sin: broadcastable to [..., D/2], e.g. [N, 1, D/2].
    Returns x's shape and dtype; computed in the wider of the dtypes. The inverse is `rotate_pairs(x, cos, -sin)`.
    """
    if x.dtype in _HALF and cos.dtype is torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # As complex numbers, which the CPU kernels multiply without strided copies: an eighth of the time. These may
        # round the last bit of float32 otherwise, so float32 itself keeps the form that does not depend on the shape.
        pairs = torch.view_as_complex(x.float().contiguous().view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class Rotary:
    """The rotary angles of a head size. RoFormer (2104.09864), eq. 15, applied to three axes as in Wan 2.1.

    Pair j of an axis with d channels rotates by position * theta^(-2j/d).
    """

    def __init__(self, head_dim: int, theta: float = 10000.0) -> None:
        if head_dim < 6 or head_dim % 2:
            raise ValueError(f"head_dim is {head_dim}; rotary positions in three axes need an even number, at least 6")
        self.head_dim = head_dim
        self.theta = theta
        self.pairs = tuple(channels // 2 for channels in split_head(head_dim))

    def axis_angles(self, axis: int, positions: torch.Tensor, phase: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Angles of one axis (0 time, 1 row, 2 column): positions [N] -> [N, pairs of that axis] float64, unwrapped.

        phase: radians, a number or [N], added to every pair.
        """
        pairs = self.pairs[axis]
        exponents = torch.arange(pairs, dtype=torch.float64, device=positions.device) / max(pairs, 1)
        frequencies = self.theta**-exponents
        angles = positions.double()[:, None] * frequencies
        return angles + (phase.double()[:, None] if isinstance(phase, torch.Tensor) else phase)

    def angles(
        self, t: torch.Tensor, y: torch.Tensor, x: torch.Tensor, phase: torch.Tensor | float = 0.0
    ) -> torch.Tensor:
        """Angles of tokens at (t, y, x), each [N], integers or fractions -> [N, D/2] float32, in [-pi, pi].

        Computed and wrapped in float64: an angle at position 100,000 is as exact as one at position 0.
        phase: radians added to all temporal angles, a number or [N] (ShotStream, 2603.25746: shot index * theta).
        """
        return self._wrapped(t, y, x, phase).float()

    def tables(
        self,
        t: torch.Tensor,
        y: torch.Tensor,
        x: torch.Tensor,
        phase: torch.Tensor | float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of the same angles, each [N, 1, D/2] in `dtype`: what `rotate` takes for [B, N, H, D]."""
        angles = self._wrapped(t, y, x, phase)[:, None, :]
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x: [B, N, H, D]; cos, sin: [N, 1, D/2] or [B, N, 1, D/2]. The same shape and dtype. See `rotate_pairs`."""
        return rotate_pairs(x, cos, sin)

    def _wrapped(self, t: torch.Tensor, y: torch.Tensor, x: torch.Tensor, phase: torch.Tensor | float) -> torch.Tensor:
        angles = torch.cat((self.axis_angles(0, t, phase), self.axis_angles(1, y), self.axis_angles(2, x)), dim=-1)
        return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
