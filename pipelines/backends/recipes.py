"""Owns the table of recipes that compile parts to files ahead of a stream, by the name of their backend.

Imports nothing heavy; a recipe is made when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .recipe import Recipe

MakeRecipe = Callable[["torch.device", bool], "Recipe"]
"""(device, refit) -> the recipe for that device. refit: weights can be changed in the loaded files, where that is a
choice. Raises ModelError, with the remedy, if nothing can be built here."""


def _tensorrt(name: str) -> MakeRecipe:
    def make(device: torch.device, refit: bool) -> Recipe:
        from .tensorrt import TensorRTRecipe, card_options

        recipe = TensorRTRecipe(name=name, options=card_options(device, refit=refit))
        if refusal := recipe.refusal(device):
            raise refusal
        return recipe

    return make


RECIPES: Mapping[str, MakeRecipe] = MappingProxyType({name: _tensorrt(name) for name in ("tensorrt", "tensorrt-rtx")})
"""All recipes that `zoetrope plans` builds."""
