"""Owns the store of plans: finds, builds, verifies, explains and prunes them, whatever recipe made them.

A plan is a folder of files under the digest of its key. It appears by one rename, complete and on the disk; what is
broken is moved aside and never returned. Works on files and strings only, for several processes at once.

    plans/NAME/files/        what the build wrote      plans/NAME/plan.json   key, time, sizes and checksums
    building/NAME-RANDOM/    a build under way         locks/NAME.lock        held while it is
    quarantine/NAME-RANDOM/  a broken plan             .../reason.json        what is wrong with it
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .entries import PlanEntry, Removed, Why, name_of, read_entry, size_of
from .errors import PlanBusyError, PlanError, PlanSpaceError
from .key import PlanKey, differences
from .manifest import describe_files, flaw_of, quick_flaw_of, sync, sync_one

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_BYTES = 256 * 1024  # less free than this: the disk counts as full, whatever a library says of its writing


def plans_are_off() -> bool:
    """Whether the environment's ZOETROPE_PLANS is "off": no plans are made or used."""
    return os.environ.get("ZOETROPE_PLANS", "") == "off"


def default_root() -> Path:
    """Return the store's folder: the environment's ZOETROPE_PLANS, else a folder of the user's cache.

    Raises PlanError if plans are switched off.
    """
    if plans_are_off():
        raise PlanError("Plans are switched off: ZOETROPE_PLANS is off.", "Unset it, or set it to a folder.")
    if given := os.environ.get("ZOETROPE_PLANS"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "zoetrope" / "plans"


class PlanStore:
    """The plans below one folder, which is made when the first one is built, for this user only: plans are code."""

    def __init__(self, root: Path | None = None, notice: Callable[[str], object] = lambda text: None) -> None:
        self.root, self._notice = root or default_root(), notice

    def find(self, key: PlanKey) -> Path | None:
        """Return the folder of a plan's files, checked; None: it is not stored, or was broken and is moved aside.

        Reads the files in full at first, after they changed and every `manifest.RECHECK_DAYS`.
        """
        home = self._home(key)
        if not home.is_dir():
            return None
        try:
            entry, expected = read_entry(home)
            flaw = "" if entry.key == key else "its key is another plan's"
        except ValueError as error:
            flaw = str(error)
        flaw = flaw or quick_flaw_of(home / "files", expected, home / "checked.json")
        if flaw:
            self._quarantine(home, flaw)
            return None
        return home / "files"

    def build(self, key: PlanKey, write: Callable[[Path], None], *, wait: bool = True) -> Path:
        """Return the folder of a plan's files; `write` makes them in an empty folder if they are not stored yet.

        `write` must raise when it cannot write. One process builds a plan at a time: others wait and then find it, or,
        with wait=False, raise PlanBusyError. A build that fails, is interrupted or killed leaves no plan.
        Raises PlanSpaceError when the disk is full, PlanError when nothing was written, and what `write` raises.
        """
        with self._locked(key, wait=wait):
            if found := self.find(key):
                return found
            self._clear_leftovers(name_of(key))
            return self._build(key, write)

    def entries(self) -> list[PlanEntry]:
        """Return the plans whose plan.json can be read, newest first. Does not read their files."""
        found = []
        for home in self._homes():
            with suppress(ValueError):
                found.append(read_entry(home)[0])
        return sorted(found, key=lambda entry: -entry.built)

    def entry(self, name: str) -> PlanEntry | None:
        """Return the plan of that name, or None. Does not read its files."""
        try:
            return read_entry(self.root / "plans" / name)[0]
        except ValueError:
            return None

    def why(self, key: PlanKey) -> Why:
        """Return why a plan of this key has to be built, if it has to."""
        if self.find(key):
            return Why(stored=True)
        entries = [entry for entry in self.entries() if (entry.key.recipe, entry.key.part) == (key.recipe, key.part)]
        nearest = min(
            entries,
            key=lambda entry: (entry.key.model != key.model, len(differences(entry.key, key)), -entry.built),
            default=None,
        )
        return Why(
            stored=False,
            nearest=nearest,
            differences=differences(nearest.key, key) if nearest else (),
            broken=self._quarantined_because(name_of(key)),
        )

    def verify(self) -> list[Removed]:
        """Read every file of every plan. Returns the broken ones, which it has moved aside."""
        broken = []
        for home in self._homes():
            try:
                entry, files = read_entry(home)
                flaw = "" if name_of(entry.key) == home.name else "its key is another plan's"
                flaw = flaw or flaw_of(home / "files", files)
            except ValueError as error:
                flaw = str(error)
            if flaw and home.is_dir():
                broken.append(Removed(name=home.name, size_bytes=size_of(home), reason=flaw))
                self._quarantine(home, flaw)
        return broken

    def prune(
        self,
        *,
        keep_days: float | None = None,
        max_bytes: int | None = None,
        unusable: Callable[[PlanKey], str] = lambda key: "",
    ) -> list[Removed]:
        """Remove plans not used for `keep_days`, those that `unusable` gives a reason for, then the longest unused
        until the rest has at most `max_bytes`; and all that broken plans and killed builds left."""
        removed = self._prune_leftovers()
        kept = []
        for entry in self.entries():
            idle_days = (time.time() - entry.used) / 86400
            reason = unusable(entry.key)
            if keep_days is not None and idle_days > keep_days:
                reason = f"not used for {idle_days:.0f} days"
            if not reason:
                kept.append(entry)
            elif self._remove(entry.folder.parent):
                removed.append(Removed(name=entry.folder.parent.name, size_bytes=entry.size_bytes, reason=reason))
        kept.sort(key=lambda entry: -entry.used)
        while max_bytes is not None and kept and sum(entry.size_bytes for entry in kept) > max_bytes:
            home, size = kept[-1].folder.parent, kept.pop().size_bytes
            if self._remove(home):
                removed.append(Removed(name=home.name, size_bytes=size, reason="the longest unused"))
        return removed

    def set_aside(self) -> list[Removed]:
        """Return the broken plans that were moved aside and not pruned yet, by name, with what is wrong with each."""
        found = []
        for folder in sorted(self.root.glob("quarantine/*")):
            reason = _reason_in(folder / "reason.json")[1]
            found.append(Removed(name=folder.name, size_bytes=size_of(folder), reason=reason or "unknown"))
        return found

    def _build(self, key: PlanKey, write: Callable[[Path], None]) -> Path:
        with self._space_errors():
            work = Path(tempfile.mkdtemp(prefix=f"{name_of(key)}-", dir=self._folder("building")))
        try:
            with self._space_errors():
                self._fill(work, key, write)
                home = self._folder("plans") / name_of(key)
                work.rename(home)
                sync_one(home.parent)
        finally:  # after the rename there is nothing left
            shutil.rmtree(work, ignore_errors=True)
        return home / "files"

    def _fill(self, work: Path, key: PlanKey, write: Callable[[Path], None]) -> None:
        files = work / "files"
        files.mkdir()
        write(files)
        if self._is_full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        described = describe_files(files)
        if not described:
            raise PlanError(f"The build of {name_of(key)} wrote no files.", "Report it, with the command.")
        record = {"key": key.as_fields(), "built": time.time(), "files": described}
        (work / "plan.json").write_text(json.dumps(record, indent=1))
        sync(work)

    @contextmanager
    def _space_errors(self) -> Iterator[None]:
        """Turn a failure on a full disk, whatever a library makes of it, into PlanSpaceError."""
        try:
            yield
        except PlanError:
            raise
        except Exception as error:  # libraries raise anything when they cannot write
            if not ((isinstance(error, OSError) and error.errno in _FULL) or self._is_full()):
                raise
            raise PlanSpaceError(
                f"There is no space left for the plan in {self.root} ({error}).",
                "Free some with `zoetrope plans prune`, or set ZOETROPE_PLANS to a folder on a larger disk.",
            ) from error

    def _is_full(self) -> bool:
        there = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.is_dir())
        return shutil.disk_usage(there).free < _FULL_BYTES

    @contextmanager
    def _locked(self, key: PlanKey, *, wait: bool) -> Iterator[None]:
        """Hold the lock of a key. The system releases the lock of a process that dies."""
        lock = FileLock(self._folder("locks") / f"{name_of(key)}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            if not wait:
                message = f"Another process is building {name_of(key)}."
                raise PlanBusyError(message, "Wait for it, or end that process.") from None
            self._notice(f"Another process is building the plan of {key.part}; waiting for it.")
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def _homes(self) -> list[Path]:
        plans = self.root / "plans"
        return sorted(plans.iterdir()) if plans.is_dir() else []

    def _quarantine(self, home: Path, flaw: str) -> None:
        try:
            aside = Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=self._folder("quarantine")))
            (aside / "reason.json").write_text(json.dumps({"reason": flaw, "time": time.time()}))
            home.rename(aside / "plan")
        except FileNotFoundError:
            return  # another process has moved it
        except OSError as error:
            self._notice(f"The plan {home.name} is broken ({flaw}), is not used, and cannot be moved aside: {error}")
            return
        self._notice(f"The plan {home.name} is broken ({flaw}): it is not used, and was moved to {aside}.")

    def _quarantined_because(self, name: str) -> str:
        """Return the newest reason why a plan was moved aside; "" if it was not."""
        reasons = map(_reason_in, self.root.glob(f"quarantine/{name}-*/reason.json"))
        return max(reasons, default=(0.0, ""))[1]

    def _clear_leftovers(self, name: str) -> list[Removed]:
        """Remove what killed builds of a plan left. Its lock must be held."""
        left = sorted(self.root.glob(f"building/{name}-*"))
        removed = [Removed(name=path.name, size_bytes=size_of(path), reason="left by a killed build") for path in left]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return removed

    def _prune_leftovers(self) -> list[Removed]:
        removed = []
        for path in sorted(self.root.glob("quarantine/*")):
            removed.append(Removed(name=path.name, size_bytes=size_of(path), reason="broken, and moved aside"))
            shutil.rmtree(path, ignore_errors=True)
        for name in sorted({path.name.rpartition("-")[0] for path in self.root.glob("building/*")}):
            try:
                with FileLock(self._folder("locks") / f"{name}.lock", timeout=0):
                    removed += self._clear_leftovers(name)
            except Timeout:
                continue  # a build under way
        return removed

    def _remove(self, home: Path) -> bool:
        """Take a plan out by one rename, then delete it. False: another process did."""
        trash = Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=self._folder("building")))
        try:
            home.rename(trash / "plan")
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(trash, ignore_errors=True)
        return True

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            with self._space_errors():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PlanError(
                f"The folder of plans, {self.root}, cannot be made: {error.strerror}.",
                "Set ZOETROPE_PLANS to a folder that you can write.",
            ) from error
        return folder

    def _home(self, key: PlanKey) -> Path:
        return self.root / "plans" / name_of(key)


def _reason_in(file: Path) -> tuple[float, str]:
    """Return when a plan was moved aside, in seconds since 1970, and why; (0, "") if that cannot be read."""
    try:
        record = json.loads(file.read_text())
        return float(record["time"]), str(record["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, ""
