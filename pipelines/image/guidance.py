"""Owns the guidance modes: when a slot is also evaluated with its negative prompt, and whether it uses stock noise.

Independent of tensors; pipelines/image/denoise.py does the arithmetic. Source of self and onetime: residual
classifier-free guidance, Kodaira et al. 2023 (StreamDiffusion), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class ExtraRow(Enum):
    """At which of a slot's steps the model also evaluates it with the negative prompt."""

    NEVER = "never"
    FIRST_STEP = "first step"
    EVERY_STEP = "every step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """One mode. uses_stock: the unconditional prediction is delta times the slot's stock noise."""

    extra: ExtraRow
    uses_stock: bool

    @property
    def guides(self) -> bool:
        """Whether scale and delta have any effect."""
        return self.uses_stock or self.extra is not ExtraRow.NEVER

    def needs_extra_row(self, step: int, scale: float) -> bool:
        """Return whether this step (from 0) evaluates the negative prompt.

        full skips it while scale <= 1, where it has no effect. onetime does not: a later step may have scale > 1.
        """
        if self.extra is ExtraRow.EVERY_STEP:
            return scale > 1.0
        return self.extra is ExtraRow.FIRST_STEP and step == 0

    def gain(self, scale: float) -> float:
        """Return g - 1 in eps = eps_c + (g - 1)(eps_c - eps_u) = eps_u + g (eps_c - eps_u); 0 turns guidance off."""
        return scale - 1.0 if self.guides and scale > 1.0 else 0.0


GUIDANCE_MODES: Mapping[str, Guidance] = MappingProxyType(
    {
        "none": Guidance(extra=ExtraRow.NEVER, uses_stock=False),
        "full": Guidance(extra=ExtraRow.EVERY_STEP, uses_stock=False),
        "self": Guidance(extra=ExtraRow.NEVER, uses_stock=True),
        "onetime": Guidance(extra=ExtraRow.FIRST_STEP, uses_stock=True),
    }
)
"""By value of the control `guidance_mode`."""
