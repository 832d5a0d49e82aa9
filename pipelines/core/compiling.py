"""Owns how functions of tensors are compiled: whole, or not at all. Does not depend on any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MAX_SHAPES = 64
"""How many shapes of a batch torch.compile may meet before it refuses; its default of 8 is few for a live engine."""


def compiled(function: Callable[_P, _R], compiler: str = "inductor") -> Callable[_P, _R]:
    """By torch.compile at first use, once for each shape; a part that cannot be compiled is an error, never skipped."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_SHAPES)
    result: Callable[_P, _R] = torch.compile(function, backend=compiler, fullgraph=True, dynamic=False)
    return result
