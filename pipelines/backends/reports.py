"""Owns what a preparation says of itself to people: what runs, what is being built and how far it is, what failed.

Written by the thread that prepares, read by others. Independent of plans and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.core.preparation import PartForm, PreparationStatus

from .recipe import Recipe

PLAIN = "PyTorch"


class Reports:
    """The status of the preparation of some parts. recipes: by name of the part."""

    def __init__(self, recipes: Mapping[str, Recipe], forms: Sequence[PartForm]) -> None:
        self._titles = {recipe.name: recipe.title for recipe in recipes.values()}
        self._failed: dict[str, str] = {}
        self._builds, self._step, self._steps, self._reported = "", "", 1, 0
        self._done = self._waiting = 0
        self._runs = ""
        self.runs(forms)

    @property
    def status(self) -> PreparationStatus:
        """See `pipelines.core.preparation.Preparation.status`."""
        return self._status

    def runs(self, forms: Sequence[PartForm]) -> None:
        """The parts run with these forms now."""
        titles = {form.part: self._titles[form.recipe] if form.recipe else PLAIN for form in forms}
        parts: dict[str, list[str]] = {}
        for part, title in titles.items():
            parts.setdefault(title, []).append(part)
        several = len(parts) > 1
        self._runs = ", ".join(f"{title} for {_and(names)}" if several else title for title, names in parts.items())
        self._update()

    def begins(self, recipe: Recipe, waiting: int) -> None:
        """A plan is being built. waiting: parts that come after it."""
        self._builds, self._step, self._reported = recipe.title, "", 0
        self._steps, self._waiting = 1 + (recipe.samples > 0) + recipe.steps, waiting
        self._update()

    def step(self, text: str) -> None:
        """The next step of the build begins."""
        self._step, self._reported = text, min(self._reported + 1, self._steps)
        self._update()

    def ends(self, part: str, *, failed: str, waiting: int) -> None:
        """A part is ready, or could not be made, and why. waiting: parts that come after it."""
        self._builds = self._step = ""
        self._failed.pop(part, None)
        if failed:
            self._failed[part] = failed
        self._done, self._waiting = (self._done + 1 if waiting else 0), waiting
        self._update()

    def _update(self) -> None:
        share = max(0, self._reported - 1) / self._steps
        self._status = PreparationStatus(
            runs=self._runs,
            builds=self._builds,
            percent=int(100 * (self._done + share) / (self._done + 1 + self._waiting)) if self._builds else 0,
            step=self._step,
            failed=" ".join(dict.fromkeys(self._failed.values())),
        )


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
