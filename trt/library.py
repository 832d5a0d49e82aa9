"""Owns which TensorRT libraries there are, whether one can be used here, and loading it.

`tensorrt` and `tensorrt-rtx` have the same Python interface: everything else in trt/ takes a `Library`. Nothing is
imported until `load_library`. Independent of models and plans.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import PlanError
from .messages import Messages, make_logger

Capability = tuple[int, int]
"""A CUDA compute capability: (8, 9) of an RTX 4090."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the two libraries. name: of the recipe, the extra of pip, and the package on PyPI.

    bindings, libraries: packages with the Python bindings and with the shared libraries. capabilities: those that its
    plans run on; None: those of the card that built them, whatever it is. portable: whether a plan runs on other cards
    than the one that it was built for, and can be built without a card. jit: whether kernels are compiled when a plan
    is first run, and kept in a runtime cache.
    """

    name: str
    bindings: str
    libraries: str
    portable: bool
    jit: bool
    capabilities: tuple[Capability, ...] | None = None

    def refusal(self, capability: Capability | None) -> PlanError | None:
        """Return why no plan can be built or run; None if one can. capability: of the card; None: there is none."""
        if any(importlib.util.find_spec(package) is None for package in (self.bindings, self.libraries)):
            return PlanError(
                f"The package {self.name} is not installed, or lacks its shared libraries.",
                f"Install it: pip install 'zoetrope[{self.name}]'.",
            )
        if capability is None:
            return None if self.portable else PlanError(f"{self.name} needs an NVIDIA card.", "Use another backend.")
        if self.capabilities is not None and capability not in self.capabilities:
            known = ", ".join(f"{major}.{minor}" for major, minor in self.capabilities)
            return PlanError(
                f"{self.name} runs on cards of compute capability {known}, not {capability[0]}.{capability[1]}.",
                "Use --backend tensorrt or compiled on this card.",
            )
        return None


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        flavour.name: flavour
        for flavour in (
            Flavour(
                name="tensorrt", bindings="tensorrt_bindings", libraries="tensorrt_libs", portable=False, jit=False
            ),
            Flavour(
                name="tensorrt-rtx",
                bindings="tensorrt_rtx_bindings",
                libraries="tensorrt_rtx_libs",
                portable=True,
                jit=True,
                capabilities=((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)),
            ),
        )
    }
)
"""Both libraries, by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Library:
    """A loaded library. api: its Python module. version: as "1.7.1.116". logger: for its objects; messages: its errors.

    There is one for a process, since TensorRT has one logger for a process.
    """

    flavour: Flavour
    api: Any
    version: str
    logger: Any
    messages: Messages


@functools.cache
def load_library(name: str) -> Library:
    """Load a library by the name of its flavour. Raises PlanError, with the remedy, if it cannot be loaded."""
    flavour = FLAVOURS[name]
    if refusal := flavour.refusal(flavour.capabilities[0] if flavour.capabilities else (0, 0)):
        raise refusal
    spec = importlib.util.find_spec(flavour.libraries)
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        _load_shared_libraries(Path(folder))
    try:
        api = importlib.import_module(flavour.bindings)
    except ImportError as error:
        raise PlanError(
            f"The package {flavour.name} cannot be loaded: {error}.",
            f"Install it again: pip install --force-reinstall 'zoetrope[{flavour.name}]'.",
        ) from error
    messages = Messages()
    logger = make_logger(api, messages)
    return Library(flavour=flavour, api=api, version=str(api.__version__), logger=logger, messages=messages)


def _load_shared_libraries(folder: Path) -> None:
    """Load those of a folder in any order that works: some need others. What still fails, the bindings report."""
    waiting = sorted(folder.glob("*.so*")) + sorted(folder.glob("*.dll"))
    for _ in range(len(waiting)):
        for file in tuple(waiting):
            with suppress(OSError):
                ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
                waiting.remove(file)
