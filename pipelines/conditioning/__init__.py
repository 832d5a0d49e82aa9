"""What steers a slot or a chunk beside latents and timestep: conditioners, one mechanism for both engines.

One file and one row of `CONDITIONERS` for each; base.py is the contract. `load_engine(..., conditioners=(*CONDITIONERS,
mine))` adds one without a row. examples/add_a_conditioner.py is a complete one.
"""

from __future__ import annotations

from .actions import ActionConditioner
from .base import ConditionerFactory
from .text import TextConditioner

CONDITIONERS: tuple[ConditionerFactory, ...] = (TextConditioner, ActionConditioner.of)
"""All conditioners, in the order in which they act."""

__all__ = ["CONDITIONERS"]
