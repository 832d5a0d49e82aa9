"""Owns what is known about the installed OpenVINO and NNCF: presence and versions, their import without telemetry, and
the process's one openvino.Core.

Nothing here imports them except `import_openvino`, `import_nncf` and `core`. Independent of parts and recipes.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.backends.base import BackendRefusal
from pipelines.core.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """A package in the versions that were tested: minimum <= version < below."""

    package: str
    title: str
    minimum: tuple[int, int]
    below: tuple[int, int]

    @property
    def specifier(self) -> str:
        """For pip: "openvino>=2026.4,<2027.0"."""
        return f"{self.package}>={_text(self.minimum)},<{_text(self.below)}"


OPENVINO = Requirement(package="openvino", title="OpenVINO", minimum=(2026, 4), below=(2027, 0))
NNCF = Requirement(package="nncf", title="NNCF", minimum=(3, 4), below=(4, 0))


def installed_version(package: str) -> str:
    """Return the version of an installed package, without importing it; "" if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def refusal_of(*requirements: Requirement) -> BackendRefusal | None:
    """Return why a requirement is not met, with the remedy; None if all are. Imports none of them."""
    for needed in requirements:
        version = installed_version(needed.package)
        if not version:
            because = f"{needed.title} is not installed"
        elif not needed.minimum <= _numbers(version) < needed.below:
            because = f"{needed.title} {version} is not a version that Zoetrope was tested with"
        else:
            continue
        return BackendRefusal(
            because=because, message=f"{because}.", remedy=f'Install it: pip install "{needed.specifier}".'
        )
    return None


def check(*requirements: Requirement) -> None:
    """Raise ModelError, with the remedy, if a requirement is not met."""
    refusal = refusal_of(*requirements)
    if refusal is not None:
        raise ModelError(refusal.message, refusal.remedy)


def import_openvino() -> Any:
    """Import and return openvino. Raises ModelError as `check` does."""
    check(OPENVINO)
    return _import("openvino")


@cache
def core() -> Any:
    """Return the openvino.Core of this process, to be used instead of others. Raises ModelError as `check` does.

    It lives until the process ends. The CPU plugin of a Core gives the thread that first uses it a stack for signal
    handlers. Freed with the Core, it puts back the stack that it found, which may be that of a Core freed before: the
    next signal that Python handles, such as Ctrl-C, would end the process (OpenVINO 2026.4, `SigAltStackSetup`).
    """
    return import_openvino().Core()


def import_nncf() -> Any:
    """Import and return nncf, which then logs errors only. Raises ModelError as `check` does."""
    check(OPENVINO, NNCF)
    nncf = _import("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


def _import(package: str) -> Any:
    """Import a package of OpenVINO's without its telemetry: importing it would report to its maker over the network.

    Both packages do without `openvino_telemetry` if it cannot be imported.
    """
    modules: Mapping[str, object] = sys.modules
    if modules.get("openvino_telemetry") is None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module(package)


def _numbers(version: str) -> tuple[int, int]:
    major, minor = (*version.split("."), "0")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
