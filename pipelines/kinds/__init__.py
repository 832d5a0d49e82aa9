"""Every kind of model, in one table: what recognises it, what loads it, what a take and `zoetrope models` need of it.

A new family is a file that subclasses `ModelKind` and a row here (examples/add_a_model_family.py is a small one).
"""

from __future__ import annotations

from pipelines.core.errors import ModelNotFoundError

from .base import LoadContext, ModelKind, Notice
from .identity import IdentityKind
from .image import ImageKind
from .video import VideoKind

MODEL_KINDS: tuple[ModelKind, ...] = (IdentityKind(), VideoKind(), ImageKind())
"""In the order in which they are asked whether a model is theirs; the most general kind is the last."""


def kind_of(model: str, kinds: tuple[ModelKind, ...] = MODEL_KINDS) -> ModelKind:
    """The first kind that recognises a model. Raises ModelNotFoundError when none does."""
    for kind in kinds:
        if kind.recognises(model):
            return kind
    names = ", ".join(kind.name for kind in kinds)
    raise ModelNotFoundError(f"{model!r} is no model of a known kind.", f"The kinds that were asked: {names}.")


def built_in_names(kinds: tuple[ModelKind, ...] = MODEL_KINDS) -> tuple[str, ...]:
    """Names of the models that need no files and are always there."""
    return tuple(name for kind in kinds for name in kind.built_in)


__all__ = ["MODEL_KINDS", "LoadContext", "ModelKind", "Notice", "built_in_names", "kind_of"]
