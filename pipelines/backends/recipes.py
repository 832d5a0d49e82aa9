"""Owns the table of recipes that compile parts to files ahead of a stream, by the name of their backend.

Imports nothing heavy; a recipe is made when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelines.core.errors import ModelError

if TYPE_CHECKING:
    import torch

    from .recipe import Recipe

MakeRecipe = Callable[["torch.device", bool], "Recipe"]
"""(device, refit) -> the recipe for that device. refit: weights can be changed in the loaded files, where that is a
choice. Raises ModelError, with the remedy, if nothing can be built here."""


def _tensorrt(name: str) -> MakeRecipe:
    def make(device: torch.device, refit: bool) -> Recipe:
        from .tensorrt import TensorRTRecipe, card_options

        recipe = TensorRTRecipe(name=name, options=card_options(name, device, refit=refit))
        if refusal := recipe.refusal(device):
            raise refusal
        return recipe

    return make


def _compiled(device: torch.device, refit: bool) -> Recipe:
    from .inductor import InductorRecipe

    return InductorRecipe()


def _openvino(*, quantised: bool) -> MakeRecipe:
    def make(device: torch.device, refit: bool) -> Recipe:
        from .openvino.recipe import OpenVINORecipe

        recipe = OpenVINORecipe(quantised=quantised)
        if refusal := recipe.refusal(device):
            raise ModelError(refusal.message, refusal.remedy)
        return recipe

    return make


RECIPES: Mapping[str, MakeRecipe] = MappingProxyType(
    {
        "tensorrt": _tensorrt("tensorrt"),
        "tensorrt-rtx": _tensorrt("tensorrt-rtx"),
        "openvino": _openvino(quantised=True),
        "openvino-bf16": _openvino(quantised=False),
        "compiled": _compiled,
    }
)
"""All recipes that `zoetrope plans` builds."""
