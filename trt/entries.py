"""Owns the record of a stored plan, read from its folder, and what the store says of plans.

Independent of how plans are found, built and removed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .key import Difference, PlanKey

FileList = Mapping[str, Mapping[str, int | str]]
_CONTENTS_CHARACTERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """A stored plan. folder: its files. contents: a digest of their checksums. built, used: seconds since 1970."""

    key: PlanKey
    folder: Path
    contents: str
    size_bytes: int
    built: float
    used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Whether a plan is stored and, if not, how it differs from the nearest stored one of the same recipe and part.

    broken: what was wrong with the plan of this key when it was moved aside; "": it never was.
    """

    stored: bool
    nearest: PlanEntry | None = None
    differences: tuple[Difference, ...] = ()
    broken: str = ""

    def __str__(self) -> str:
        if self.stored:
            return "It is stored: nothing needs to be built."
        lines = [f"It was moved aside because {self.broken}."] if self.broken else []
        if self.nearest is None:
            return "\n".join([*lines, "No plan of this recipe and part is stored."])
        lines += [f"The nearest stored plan is {self.nearest.folder.parent.name}; it differs in"]
        return "\n".join([*lines, *(f"  {difference}" for difference in self.differences)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What `prune` or `verify` took out of the store, and why."""

    name: str
    size_bytes: int
    reason: str


def name_of(key: PlanKey) -> str:
    """Return the name of a plan's folder."""
    name = f"{key.recipe}-{key.part}-{key.digest[:24]}"
    assert re.fullmatch(r"[\w.-]+", name), name
    return name


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_entry(home: Path) -> tuple[PlanEntry, FileList]:
    """Return the entry of a plan's folder, and its files. Raises ValueError if plan.json is missing or damaged."""
    try:
        record = json.loads((home / "plan.json").read_text())
        key, files = PlanKey.from_fields(record["key"]), record["files"]
        size, built = sum(int(file["bytes"]) for file in files.values()), float(record["built"])
        contents = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:_CONTENTS_CHARACTERS]
        checked = home / "checked.json"
        used = max(built, checked.stat().st_mtime if checked.exists() else 0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("plan.json is missing or damaged") from None
    folder = home / "files"
    return PlanEntry(key=key, folder=folder, contents=contents, size_bytes=size, built=built, used=used), files
