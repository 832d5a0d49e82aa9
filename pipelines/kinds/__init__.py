"""Owns the table of model kinds: what recognises and loads each, and what takes and `zoetrope models` need of it.

Adding a family takes a file that subclasses `ModelKind` and a row here; examples/add_a_model_family.py is a small one.
"""

from __future__ import annotations

from pipelines.core.errors import ModelNotFoundError

from .base import LoadContext, ModelKind, chosen_backend
from .identity import IdentityKind
from .image import ImageKind
from .video import VideoKind

MODEL_KINDS: tuple[ModelKind, ...] = (IdentityKind(), VideoKind(), ImageKind())
"""In the order in which they are tried; the most general kind comes last."""


def kind_of(model: str, kinds: tuple[ModelKind, ...] = MODEL_KINDS) -> ModelKind:
    """Return the first kind that recognises a model. Raises ModelNotFoundError when none does."""
    for kind in kinds:
        if kind.recognises(model):
            return kind
    names = ", ".join(kind.name for kind in kinds)
    raise ModelNotFoundError(f"{model!r} is not a model of any known kind.", f"Known kinds: {names}.")


def built_in_names(kinds: tuple[ModelKind, ...] = MODEL_KINDS) -> tuple[str, ...]:
    """Return the names of the models that need no files and are always available."""
    return tuple(name for kind in kinds for name in kind.built_in)


__all__ = ["MODEL_KINDS", "LoadContext", "ModelKind", "built_in_names", "chosen_backend", "kind_of"]
