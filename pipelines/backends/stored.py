"""Owns the plans of one model's parts in a store: their keys, whether they are there, and loading them.

Independent of when they are wanted, built and used.
"""

from __future__ import annotations

from pipelines.core.errors import ModelError
from pipelines.core.origin import Origin
from pipelines.core.parts import Part
from pipelines.core.preparation import PartForm
from trt.entries import name_of
from trt.key import PlanKey, differences
from trt.store import PlanStore

from .forms import LoadedForm
from .plan_keys import plan_key
from .recipe import Recipe


class StoredPlans:
    """The plans of a model. backend: the name by which users build its plans."""

    def __init__(self, store: PlanStore, origin: Origin, backend: str) -> None:
        self.store, self._origin, self._backend = store, origin, backend

    @property
    def how_to_build(self) -> str:
        """A sentence for the user."""
        return f"Build it: `zoetrope plans build {self._origin.model} --backend {self._backend}`."

    def key(self, recipe: Recipe, part: Part) -> PlanKey:
        """Return the key of a part's plan. Reads all weights if the plan contains them."""
        return plan_key(recipe, part, self._origin.model, self._origin.lora)

    def load(self, recipe: Recipe, part: Part) -> LoadedForm | None:
        """Return the compiled form of a part; None: its plan is not stored. Raises ModelError."""
        return self._load(recipe, part, self.key(recipe, part))

    def missing(self, form: PartForm) -> bool:
        """Whether the plan of a form is not stored."""
        return bool(form.plan) and self.store.entry(form.plan) is None

    def load_same(self, recipe: Recipe, part: Part, form: PartForm) -> tuple[LoadedForm, str]:
        """Return the form that ran elsewhere or before, and a caution if its files were built again since ("": not).

        Raises ModelError, with the remedy, if the part's plan here is another one, or is not stored.
        """
        key = self.key(recipe, part)
        if name_of(key) != form.plan:
            entry = self.store.entry(form.plan)
            found = [] if entry is None else [str(difference) for difference in differences(entry.key, key)]
            raise ModelError(
                f"{form.part} ran with the plan {form.plan}, which is not that of this model, its weights, the "
                f"libraries and the machine here: {'; '.join(found) or f'that is {name_of(key)}'}.",
                "Use the same ones, or `--backend eager`, with which frames differ.",
            )
        loaded = self._load(recipe, part, key)
        if loaded is None:
            raise ModelError(f"The plan {form.plan} of {form.part} is not stored.", self.how_to_build)
        if loaded.form.files == form.files:
            return loaded, ""
        return loaded, f"The plan {form.plan} was built again since: its result may differ in rounding."

    def _load(self, recipe: Recipe, part: Part, key: PlanKey) -> LoadedForm | None:
        folder = self.store.find(key)
        entry = self.store.entry(name_of(key))
        if folder is None or entry is None:
            return None
        form = PartForm(
            part=part.name, recipe=recipe.name, plan=name_of(key), files=entry.contents, inputs=part.input_forms
        )
        return LoadedForm(form=form, part=part, call=recipe.load(part, folder))
