"""Owns which parts of PyTorch, diffusers and transformers are deferred: what their networks import and never use here.

It halves the time until the first frame (`python -m bench.start`). Nothing is missing: whoever uses a part runs it, see
deferred.py. tests/unit/test_start.py lists what must not have run by the first frame.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .deferred import Deferral, defer

Decorator = Callable[..., Any]


class _Decorators:
    """Stand-ins for decorators of torch._dynamo, the compiler's front end. They are applied when it runs, before it
    compiles anything."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, Any]] = []
        self._dynamo: ModuleType | None = None

    @property
    def stand_ins(self) -> Mapping[str, Decorator]:
        """By the name of the decorator."""
        return {
            "allow_in_graph": functools.partial(self._mark, "allow_in_graph"),
            "assume_constant_result": functools.partial(self._mark, "assume_constant_result"),
            "disable": self._disable,
        }

    def apply(self, dynamo: ModuleType) -> None:
        """Apply what was noted."""
        self._dynamo = dynamo
        for name, marked in self._marks:
            getattr(dynamo, name)(marked)
        self._marks.clear()

    def _mark(self, name: str, marked: Any) -> Any:
        if self._dynamo is not None:
            return getattr(self._dynamo, name)(marked)
        self._marks.append((name, marked))
        return marked

    def _disable(self, fn: Decorator | None = None, recursive: bool = True, **options: Any) -> Any:
        """Return fn as it is until the compiler runs, then fn without it."""
        if fn is None:
            return functools.partial(self._disable, recursive=recursive, **options)
        real: Decorator | None = None

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal real
            if self._dynamo is None:
                return fn(*args, **kwargs)
            if real is None:
                real = self._dynamo.disable(fn, recursive, **options)
            return real(*args, **kwargs)

        return call


def defer_unused_parts() -> None:
    """Defer them, if they are not imported yet. Call it before a model is loaded."""
    decorators = _Decorators()
    whole = Deferral()
    defer(
        {
            "torch._dynamo": Deferral(
                stand_ins=decorators.stand_ins,
                parts=frozenset({"_trace_wrapped_higher_order_op"}),
                then=decorators.apply,
            ),
            "diffusers.hooks": Deferral(parts=frozenset({"_common", "hooks", "group_offloading"})),
            "diffusers.models.autoencoders": whole,
            "diffusers.models.transformers": whole,
            "diffusers.models.unets": whole,
            "transformers.models": whole,
        }
    )
