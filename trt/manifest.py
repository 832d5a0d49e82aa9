"""Owns the list of a plan's files with their checksums: made after a build, checked before a load.

Files of gigabytes take seconds to read, so a full check is remembered: `quick_check` accepts files whose size, times
and inode are those that were read in full within `RECHECK_DAYS`. Independent of keys and of where plans are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

RECHECK_DAYS = 7
"""After so many days files are read in full again, so that decay of the disk is found."""
_SETTLE_NS = 2_000_000_000  # a change this soon after a check could leave the times as they are: not remembered


def list_files(folder: Path) -> dict[str, Path]:
    """Return the regular files below a folder by relative name. Raises ValueError for anything else in it."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.relative_to(folder)} is not a regular file")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path
    return found


def describe_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return size in bytes and sha256 of each file below a folder, by relative name."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in list_files(folder).items()
    }


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flaw_of(folder: Path, expected: Mapping[str, Mapping[str, int | str]]) -> str:
    """Read all files and return what is wrong with them; "": nothing."""
    if flaw := _shallow_flaw(folder, expected):
        return flaw
    try:
        changed = [name for name, entry in expected.items() if sha256_of(folder / name) != entry["sha256"]]
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return f"the checksum of {', '.join(changed)} differs" if changed else ""


def quick_flaw_of(folder: Path, expected: Mapping[str, Mapping[str, int | str]], remembered: Path) -> str:
    """As `flaw_of`, but files that the file `remembered` says were read in full, and did not change, are not read."""
    if flaw := _shallow_flaw(folder, expected):
        return flaw
    identities = _identities(folder, expected)
    if _remembers(remembered, identities):
        os.utime(remembered)  # its time is that of the last use
        return ""
    if flaw := flaw_of(folder, expected):
        return flaw
    _remember(remembered, identities)
    return ""


def sync(folder: Path) -> None:
    """Write all files and folders below a folder, and itself, through to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync_one(path)


def sync_one(path: Path) -> None:
    """Write a file, or a folder's list of names, through to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shallow_flaw(folder: Path, expected: Mapping[str, Mapping[str, int | str]]) -> str:
    try:
        found = list_files(folder)
    except ValueError as error:
        return str(error)
    if missing := sorted(set(expected) - set(found)):
        return f"{', '.join(missing)} is missing"
    if unknown := sorted(set(found) - set(expected)):
        return f"{', '.join(unknown)} is not a file of the build"
    for name, path in found.items():
        size = path.stat().st_size
        if size != expected[name]["bytes"]:
            return f"{name} has {size} bytes instead of {expected[name]['bytes']}"
    return ""


def _identities(folder: Path, names: Mapping[str, object]) -> dict[str, list[int]]:
    """Size, times of change in nanoseconds, and inode of each file: any write through the file system changes them."""
    stats = {name: (folder / name).stat() for name in names}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev] for name, s in stats.items()}


def _remembers(remembered: Path, identities: Mapping[str, list[int]]) -> bool:
    try:
        entry = json.loads(remembered.read_text())
        age_days = (time.time() - entry["checked"]) / 86400
        return bool(entry["files"] == identities and 0 <= age_days < RECHECK_DAYS)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remember(remembered: Path, identities: Mapping[str, list[int]]) -> None:
    newest = max((max(identity[1:3]) for identity in identities.values()), default=0)
    now = time.time_ns()
    checked = now / 1e9 if now - newest > _SETTLE_NS else 0.0
    try:
        remembered.write_text(json.dumps({"checked": checked, "files": identities}))
    except OSError:
        return  # a store that cannot be written: read in full each time
