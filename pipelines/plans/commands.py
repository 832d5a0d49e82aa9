"""Owns the actions of `zoetrope plans`: build, list, verify, explain and prune. Independent of how they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.backends.recipes import RECIPES, MakeRecipe
from pipelines.core.contracts import Notify
from pipelines.core.errors import InputError, ModelError, OutputError
from pipelines.files.loader_options import LoaderOptions
from trt.entries import PlanEntry, Removed, size_of
from trt.errors import PlanError, PlanSpaceError
from trt.store import PlanStore

__all__ = ["BuiltPlan", "PlanEntry", "PlanRequest", "Plans", "Removed", "plan_errors", "unusable_here"]

if TYPE_CHECKING:
    from pipelines.backends.recipe import Recipe
    from pipelines.core.parts import Part
    from trt.key import PlanKey

    from .parts import ModelParts


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Which plans of a model are meant. slots: sizes of an image model's batches. refit: see `RECIPES`."""

    model: str
    backend: str
    options: LoaderOptions
    slots: tuple[int, ...] = (1, 2, 3, 4)
    refit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A plan that is stored now. seconds: what building it took; 0: it was stored before."""

    part: str
    inputs: str
    size_bytes: int
    seconds: float


class Plans:
    """The plans of one folder, by default the user's. recipes: the table of recipes."""

    def __init__(
        self, root: Path | None = None, *, notice: Notify, recipes: Mapping[str, MakeRecipe] = RECIPES
    ) -> None:
        self.store, self._notice, self._recipes = PlanStore(root, notice), notice, recipes

    def build(self, request: PlanRequest, progress: Notify) -> Iterator[BuiltPlan]:
        """Load the model, build what is not stored, and yield each plan when it is stored.

        Raises ModelError for what cannot be built, OutputError if it cannot be stored. An interrupted build leaves the
        plans that are complete.
        """
        with plan_errors():
            for recipe, part, key in self.wanted(request):
                started, work = time.monotonic(), _Work(recipe, part, progress)
                folder = self.store.build(key, work)
                seconds = time.monotonic() - started if work.done else 0.0
                yield BuiltPlan(part=part.name, inputs=key.inputs, size_bytes=size_of(folder), seconds=seconds)

    def why(self, request: PlanRequest) -> Iterator[tuple[str, str]]:
        """Yield (part and inputs, why it has to be built or that it is stored)."""
        with plan_errors():
            for _, part, key in self.wanted(request):
                yield f"{part.name}: {key.inputs}", str(self.store.why(key))

    def entries(self) -> Sequence[PlanEntry]:
        """Return the stored plans, newest first."""
        return self.store.entries()

    def verify(self) -> Sequence[Removed]:
        """Read all files. Returns the broken plans, now moved aside."""
        with plan_errors():
            return self.store.verify()

    def prune(self, *, keep_days: float | None, max_bytes: int | None, unusable: bool) -> Sequence[Removed]:
        """See `PlanStore.prune`. unusable: also remove those that cannot run here."""
        with plan_errors():
            check = unusable_here() if unusable else lambda key: ""
            return self.store.prune(keep_days=keep_days, max_bytes=max_bytes, unusable=check)

    def stored(self, recipe: Recipe, part: Part, key: PlanKey, progress: Notify) -> Path:
        """Return the folder of a part's plan, built if it is not stored."""
        return self.store.build(key, _Work(recipe, part, progress))

    def wanted(self, request: PlanRequest) -> Iterator[tuple[Recipe, Part, PlanKey]]:
        """Load the model and yield the recipe, the part and the key of each of its plans. Raises ModelError."""
        from pipelines.backends.plan_keys import plan_key

        recipe = self.recipe(request)
        model = self._parts(request)
        for part in model.parts:
            yield recipe, part, plan_key(recipe, part, model.name, model.lora)

    def recipe(self, request: PlanRequest) -> Recipe:
        """Return the recipe for the request's device. Raises InputError for an unknown name, ModelError."""
        from pipelines.files.precision import choose_device

        if request.backend not in self._recipes:
            names = ", ".join(self._recipes)
            raise InputError(f"No plans are built for a backend named {request.backend!r}.", f"Use one of: {names}.")
        return self._recipes[request.backend](choose_device(request.options.device), request.refit)

    def _parts(self, request: PlanRequest) -> ModelParts:
        import torch

        from pipelines.files.precision import choose_device

        from .parts import model_parts

        elsewhere = choose_device(request.options.device).type == "cpu" and request.backend.startswith("tensorrt")
        dtype = torch.float16 if elsewhere and request.options.dtype in ("auto", "float16") else None
        return model_parts(request.model, request.options, dtype=dtype, slots=request.slots, notice=self._notice)


class _Work:
    """What the store calls to build a plan. done: whether it was called."""

    def __init__(self, recipe: Recipe, part: Part, progress: Notify) -> None:
        self._recipe, self._part, self._progress, self.done = recipe, part, progress, False

    def __call__(self, folder: Path) -> None:
        samples = [tuple(self._part.inputs.values())] * self._recipe.samples
        self._recipe.build(self._part, samples, folder, self._progress)
        self.done = True


def unusable_here() -> Callable[[PlanKey], str]:
    """Return a function that says why a plan cannot run on this machine; "": it can, as far as its key tells."""
    import torch

    cards = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

    def check(key: PlanKey) -> str:
        if not key.recipe.startswith("tensorrt"):
            return ""
        if not cards:
            return "there is no NVIDIA card here"
        if key.recipe == "tensorrt-rtx":
            turing = key.device.endswith("7.5")
            fits = any((card == (7, 5)) == turing for card in cards)
        else:
            fits = any(key.device.startswith(f"{name}, ") for name in names)
        return "" if fits else f"no card here is {key.device}"

    return check


@contextmanager
def plan_errors() -> Iterator[None]:
    """Turn errors of trt/ into those that users see."""
    try:
        yield
    except PlanSpaceError as error:
        raise OutputError(error.message, error.remedy) from error
    except PlanError as error:
        raise ModelError(error.message, error.remedy) from error
