"""Owns what each part of an engine runs with: its network as it is, or compiled forms at some shapes.

Independent of recipes, stores, and of when forms are made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.core.parts import Part, PartCall
from pipelines.core.preparation import PartForm


class PartUser(Protocol):
    """What calls a part: it is given the compiled form when that is ready."""

    def part(self, inputs: dict[str, torch.Tensor]) -> Part:
        """Return the part at the shapes of the inputs."""
        ...

    def use(self, part: Part, call: PartCall) -> None:
        """Use a compiled form at its part's shapes from now on."""
        ...

    def use_plain(self) -> None:
        """Use the plain network again, and want compiled forms anew."""
        ...

    def missing(self, batch: int) -> Part | None:
        """Return a part with this size of batch that has been called and has no compiled form of that size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedForm:
    """A compiled form that can be used. call: None: the network as it is."""

    form: PartForm
    part: Part | None
    call: PartCall | None


class PartForms:
    """The users of an engine's parts, and what they run with.

    names: of the parts that may have compiled forms; the others, and those without a user, are never reported.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = tuple(names)
        self._users: dict[str, PartUser] = {}
        self._used: dict[tuple[str, object], LoadedForm] = {}
        self._current = self._described()

    def add(self, name: str, user: PartUser) -> None:
        """Give compiled forms of a part to `user`."""
        self._users[name] = user
        self._current = self._described()

    def __getitem__(self, name: str) -> PartUser:
        return self._users[name]

    @property
    def current(self) -> tuple[PartForm, ...]:
        """See `pipelines.core.preparation.Preparation.forms`."""
        return self._current

    def use(self, loaded: LoadedForm) -> None:
        """Put a form into use."""
        form = loaded.form
        if loaded.call is None or loaded.part is None:
            self.use_plain(lambda name: name == form.part)
            return
        self._users[form.part].use(loaded.part, loaded.call)
        self._used.pop((form.part, form.inputs), None)  # the newest is the last
        self._used[form.part, form.inputs] = loaded
        self._current = self._described()

    def use_plain(self, concerned: Callable[[str], bool]) -> None:
        """Use the networks of the parts that may have compiled forms and are concerned as they are."""
        for name, user in self._users.items():
            if name in self._names and concerned(name):
                user.use_plain()
        self._used = {key: loaded for key, loaded in self._used.items() if not concerned(key[0])}
        self._current = self._described()

    @property
    def loaded(self) -> tuple[LoadedForm, ...]:
        """The compiled forms in use."""
        return tuple(self._used.values())

    def _described(self) -> tuple[PartForm, ...]:
        compiled = {name for name, _ in self._used}
        plain = (PartForm(part=name) for name in self._names if name in self._users and name not in compiled)
        return (*plain, *(loaded.form for loaded in self._used.values()))
