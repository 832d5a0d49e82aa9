"""Owns the model kind without a network: the identity. Imports no torch."""

from __future__ import annotations

from pipelines.core.contracts import Engine
from pipelines.files.loader_options import LoaderOptions
from pipelines.identity import IDENTITY, IdentityEngine

from .base import LoadContext, ModelKind

_SIZE_PX = 192


class IdentityKind(ModelKind):
    """The single model named "identity": a test pattern, and a way to test cameras and connections."""

    name = IDENTITY
    uses_torch = False
    built_in = (name,)

    def recognises(self, model: str) -> bool:
        """Return whether the name is "identity"."""
        return model == self.name

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """Create the engine. Only size, slots and stages apply; nothing is computed on a device."""
        return IdentityEngine(
            model=model,
            width=options.width or _SIZE_PX,
            height=options.height or _SIZE_PX,
            max_slots=options.max_slots,
            stages=options.stages,
        )
