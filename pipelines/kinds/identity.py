"""The model kind without a network: the identity. Its engine imports no tensor library."""

from __future__ import annotations

from pipelines.core.contracts import Engine
from pipelines.files.loader_options import LoaderOptions
from pipelines.identity import IDENTITY, IdentityEngine

from .base import LoadContext, ModelKind

_SIZE_PX = 192


class IdentityKind(ModelKind):
    """The one model named "identity": a test pattern, and a way to try cameras and connections."""

    name = IDENTITY
    uses_torch = False
    built_in = (name,)

    def recognises(self, model: str) -> bool:
        """By its name."""
        return model == self.name

    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """Only size and slots are chosen; there is nothing to run, so device, dtype and backend mean nothing."""
        return IdentityEngine(
            model=model,
            width=options.width or _SIZE_PX,
            height=options.height or _SIZE_PX,
            max_slots=options.max_slots,
            stages=options.stages,
        )
