"""Owns how tensor functions are compiled: as one graph or not at all. Independent of what is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MAX_SHAPES = 64
"""How many batch shapes torch.compile may see before it gives up; its default of 8 is too few for a live engine."""


def compiled(function: Callable[_P, _R], compiler: str = "inductor") -> Callable[_P, _R]:
    """Compile `function` with torch.compile, at first use and once per shape.

    A part that cannot be compiled is an error; it is never skipped. compiler: torch.compile's backend.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_SHAPES)
    result: Callable[_P, _R] = torch.compile(function, backend=compiler, fullgraph=True, dynamic=False)
    return result
