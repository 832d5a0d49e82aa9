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
    from pipelines.core.parts import Part, Tensors
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WantedPlan:
    """A plan that a model needs. samples: see `ModelParts`."""

    recipe: Recipe
    part: Part
    key: PlanKey
    samples: Callable[[Part, int], Sequence[Tensors]]


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
            for wanted in self.wanted(request):
                started, work = time.monotonic(), _Work(wanted, progress)
                size = size_of(self.store.build(wanted.key, work))
                seconds = time.monotonic() - started if work.done else 0.0
                yield BuiltPlan(part=wanted.part.name, inputs=wanted.key.inputs, size_bytes=size, seconds=seconds)

    def why(self, request: PlanRequest) -> Iterator[tuple[str, str]]:
        """Yield (part and inputs, why it has to be built or that it is stored)."""
        with plan_errors():
            for wanted in self.wanted(request):
                yield f"{wanted.part.name}: {wanted.key.inputs}", str(self.store.why(wanted.key))

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

    def stored(self, wanted: WantedPlan, progress: Notify) -> Path:
        """Return the folder of a part's plan, built if it is not stored."""
        return self.store.build(wanted.key, _Work(wanted, progress))

    def wanted(self, request: PlanRequest) -> Iterator[WantedPlan]:
        """Load the model and yield each of its plans. Raises ModelError."""
        from pipelines.backends.plan_keys import plan_key

        recipe, keys = self.recipe(request), set[str]()
        model = self._parts(request)
        for part in model.parts:
            key = plan_key(recipe, part, model.name, model.lora)
            if key.digest not in keys:  # a file may serve several sizes
                keys.add(key.digest)
                yield WantedPlan(recipe=recipe, part=part, key=key, samples=model.samples)

    def recipe(self, request: PlanRequest) -> Recipe:
        """Return the recipe for the request's device. Raises InputError for an unknown name, ModelError."""
        from pipelines.files.precision import choose_device

        if request.backend not in self._recipes:
            names = ", ".join(self._recipes)
            raise InputError(f"No plans are built for a backend named {request.backend!r}.", f"Use one of: {names}.")
        return self._recipes[request.backend](choose_device(request.options.device), request.refit)

    def _parts(self, request: PlanRequest) -> ModelParts:
        import torch

        from .parts import model_parts

        dtype = (
            torch.float16 if is_for_another_machine(request) and request.options.dtype in ("auto", "float16") else None
        )
        return model_parts(request.model, request.options, dtype=dtype, slots=request.slots, notice=self._notice)


def is_for_another_machine(request: PlanRequest) -> bool:
    """Whether the plans are for a card, and the model is on the CPU: they can be built, but not run."""
    from pipelines.files.precision import choose_device

    return request.backend.startswith("tensorrt") and choose_device(request.options.device).type == "cpu"


class _Work:
    """What the store calls to build a plan. done: whether it was called."""

    def __init__(self, wanted: WantedPlan, progress: Notify) -> None:
        self._wanted, self._progress, self.done = wanted, progress, False

    def __call__(self, folder: Path) -> None:
        recipe, part = self._wanted.recipe, self._wanted.part
        samples = self._wanted.samples(part, recipe.samples) if recipe.samples else ()
        recipe.build(part, samples, folder, self._progress)
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
