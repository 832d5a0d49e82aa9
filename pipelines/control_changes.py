"""Owns which controls an open stream can change: not those that need a new one, nor another kind of engine's.

Knows the control table only; engines add their own checks.
"""

from __future__ import annotations

from collections.abc import Mapping

from .control_table import CONTROLS, EngineKind
from .controls import Control, Controls
from .errors import ControlError
from .types import Propagation

_NOUNS: Mapping[EngineKind, str] = {"image": "an image model", "video": "a video model"}


def changeable(current: Controls, control: Control, *, engine: EngineKind) -> Controls:
    """`current` with `control` applied, after a check that nothing changes which cannot in an open stream of `engine`.

    Raises ControlError for a new value of the class *reopen*, and of a control that means nothing to this engine.
    """
    fixed = {n: current.values[n] for n, spec in CONTROLS.items() if spec.propagation is Propagation.REOPEN}
    for name, value in control.changes().items():
        if name in fixed and value not in (fixed[name], 0):
            raise ControlError(
                f"{name} cannot become {value!r} in an open stream (it is {fixed[name]!r}).",
                "Load the engine again with that value.",
            )
        if name not in fixed and engine not in CONTROLS[name].engines and value != current.values[name]:
            raise ControlError(
                f"{name} means nothing to {_NOUNS[engine]}.", f"It is a control of {_NOUNS[CONTROLS[name].engines[0]]}."
            )
    return current.updated(control).updated(Control.of(fixed))
