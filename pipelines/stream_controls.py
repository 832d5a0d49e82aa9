"""Owns the check of a change of a stream's controls: all of it can be done, or none of it is.

Knows no slots; changes nothing.
"""

from __future__ import annotations

from .control_table import CONTROLS
from .controls import Control, Controls
from .errors import ControlError
from .image_core import ImageCore
from .schedule import timesteps
from .types import Propagation


def checked_controls(core: ImageCore, current: Controls, control: Control) -> Controls:
    """`current` with `control` applied. Raises ControlError, with the remedy, where that cannot be.

    Controls of the class *reopen* may be named, but only with the value they have (or 0: the model's own).
    """
    fixed = {n: current.values[n] for n, spec in CONTROLS.items() if spec.propagation is Propagation.REOPEN}
    for name, value in control.changes().items():
        if name in fixed and value not in (fixed[name], 0):
            raise ControlError(
                f"{name} cannot become {value!r} in an open stream (it is {fixed[name]!r}).",
                "Load the engine again with that value.",
            )
    candidate = current.updated(control).updated(Control.of(fixed))
    timesteps(core.model.schedule, candidate.integer("steps"), candidate.number("strength"))
    if control.lora_scale is not None:
        core.check_lora_scale(control.lora_scale)
    return candidate
