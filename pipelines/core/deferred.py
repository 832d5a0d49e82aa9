"""Owns packages that run only when something in them is asked for: those that libraries import and we do not use.

`import package.part` runs a package's `__init__` first, which often imports all other parts. The parts of a deferred
package are imported alone. Whoever asks it for anything else gets it, since it runs then. Independent of which packages
are deferred, and why.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_RUN = "_run_deferred"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """How a module is deferred.

    stand_ins: attributes that it has until it runs. parts: submodules that are imported without running it; None: all.
    then: called with the module once it has run.
    """

    stand_ins: Mapping[str, object] = field(default_factory=dict)
    parts: frozenset[str] | None = None
    then: Callable[[ModuleType], object] | None = None


def defer(deferrals: Mapping[str, Deferral]) -> None:
    """From now on, defer these modules, by name, when they are first imported. Modules that are already imported, and a
    second call with the same names, change nothing."""
    known = {name for finder in sys.meta_path if isinstance(finder, _DeferringFinder) for name in finder.deferrals}
    new = {name: deferral for name, deferral in deferrals.items() if name not in known}
    if new:
        sys.meta_path.insert(0, _DeferringFinder(new))


class _DeferringFinder(MetaPathFinder):
    def __init__(self, deferrals: Mapping[str, Deferral]) -> None:
        self.deferrals = deferrals

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a deferred module; run one before any submodule is imported that is not among its parts."""
        parent, _, part = fullname.rpartition(".")
        above = self.deferrals.get(parent)
        if above is not None and above.parts is not None and part not in above.parts:
            run(sys.modules[parent])
            if (imported := sys.modules.get(fullname)) is not None:  # by the package, just now
                return _spec_of_imported(fullname, imported)
        deferral = self.deferrals.get(fullname)
        spec = None if deferral is None else PathFinder.find_spec(fullname, path, target)
        if deferral is not None and spec is not None and spec.loader is not None:
            spec.loader = _DeferringLoader(spec.loader, deferral)
        return spec


class _DeferringLoader(Loader):
    def __init__(self, loader: Loader, deferral: Deferral) -> None:
        self._loader, self._deferral = loader, deferral

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create what the module's own loader creates."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is, but ready to run."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        module.__dict__.update(self._deferral.stand_ins)
        module.__dict__[_RUN] = _Run(module, self._loader, self._deferral)
        module.__class__ = _DeferredModule


def _spec_of_imported(name: str, module: ModuleType) -> ModuleSpec:
    """Return a specification that loads what is imported. The import system would prefer the module's own, and run it
    a second time: it has none until the loader gives it back."""
    spec = ModuleSpec(name, _ImportedLoader(module))
    module.__spec__ = None
    return spec


class _ImportedLoader(Loader):
    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back."""
        module.__spec__ = self._spec


class _Run:
    """Runs a deferred module once, whoever asks for it first."""

    def __init__(self, module: ModuleType, loader: Loader, deferral: Deferral) -> None:
        self._module, self._loader, self._deferral = module, loader, deferral
        self._lock = threading.RLock()  # another thread waits until the module has run
        self._begun = False

    def __call__(self) -> None:
        with self._lock:
            if self._begun:  # by this thread: the module imports itself while it runs
                return
            self._begun = True
            for name in self._deferral.stand_ins:
                del self._module.__dict__[name]
            self._loader.exec_module(self._module)
            if self._deferral.then is not None:
                self._deferral.then(self._module)


class _DeferredModule(ModuleType):
    """A module that may not have run. Those who imported it keep it, so it also answers for what replaced it."""

    def __getattr__(self, name: str) -> Any:
        state = self.__dict__
        state[_RUN]()
        if name in state:
            return state[name]
        actual = sys.modules[self.__name__]  # some packages replace themselves while they run
        if actual is self:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return getattr(actual, name)


def run(module: ModuleType) -> None:
    """Run a deferred module, unless it has run; do nothing for others."""
    if _RUN in module.__dict__:
        module.__dict__[_RUN]()
