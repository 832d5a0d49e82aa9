"""Conditioners: what steers a slot or a chunk besides latents and timesteps, one mechanism for both engines.

Each is one file and one row of `CONDITIONERS`; base.py has the contract. `load_engine(..., conditioners=(*CONDITIONERS,
mine))` adds one without a row. examples/add_a_conditioner.py is a complete example.
"""

from __future__ import annotations

from .actions import ActionConditioner
from .base import ConditionerFactory
from .feature_bank import FeatureBankConditioner
from .text import TextConditioner

CONDITIONERS: tuple[ConditionerFactory, ...] = (TextConditioner, ActionConditioner.of, FeatureBankConditioner.of)
"""All conditioners, in the order in which they are applied."""

__all__ = ["CONDITIONERS"]
