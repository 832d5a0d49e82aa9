"""The folder of all takes: names, the quota, and deletion of the oldest to stay below it.

A take being written is locked by its process, so that a dead process leaves none running. Names are made here, never
taken from a request. Independent of sessions.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.disk.locks import HeldLock, is_held
from app.disk.names import STAMP, stamp_after
from pipelines.core.errors import InputError, OutputError

from .writer import LOCK_NAME, LOG_NAME, QUOTA_STEP_BYTES

_NAME = re.compile(STAMP + r"-[0-9a-f]{8}")
_MIN_ROOM_BYTES = 64 * 2**20
_GIB = 2**30


class TakesFullError(OutputError):
    """There is no room for another take, and nothing may be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTake:
    """A take on disk. size: bytes. running: it is being written."""

    name: str
    folder: Path
    size: int
    running: bool


class TakeStore:
    """Takes under `root`, at most `limit_bytes` in total. Thread-safe."""

    def __init__(self, root: Path, limit_bytes: int = 10 * _GIB, *, min_room_bytes: int = _MIN_ROOM_BYTES) -> None:
        """min_room_bytes: free space required to begin a take."""
        if limit_bytes < min_room_bytes:
            raise InputError(f"{limit_bytes} bytes are too few for takes.", f"Allow {min_room_bytes} or more.")
        self.root = root
        self.limit_bytes = limit_bytes
        self._min_room_bytes = min_room_bytes
        self._lock = threading.Lock()
        self._newest = ""  # the last name given, whether it was used or not

    def create(self) -> Path:
        """The path of a new take, which TakeWriter makes; the oldest finished takes are deleted if necessary.

        Nothing is made here: what asks first whether a take may begin leaves nothing behind. Raises TakesFullError.
        """
        with self._lock:
            if not self._make_room(self._min_room_bytes):
                raise TakesFullError(
                    f"There is no room for another take: takes being recorded fill the {self.limit_bytes / _GIB:.1f} "
                    "GiB allowed.",
                    "Stop one of them, or allow more.",
                )
            names = [self._newest, *(folder.name for folder in self._folders())]
            stamp = stamp_after(max(names) or None)
            self._newest = f"{stamp}-{secrets.token_hex(4)}"
            return self.root / self._newest

    def may_grow(self) -> bool:
        """For TakeWriter: whether takes may grow further; makes room if possible.

        Room is kept for what all running ones may write before they ask again, so that the total stays below the limit.
        """
        with self._lock:
            running = sum(is_running(folder) for folder in self._folders())
            return self._make_room(min(running * QUOTA_STEP_BYTES * 2, self.limit_bytes // 2))

    def takes(self) -> tuple[StoredTake, ...]:
        """All takes, oldest first."""
        return tuple(StoredTake(name=f.name, folder=f, size=_size(f), running=is_running(f)) for f in self._folders())

    def _folders(self) -> list[Path]:
        """Oldest first."""
        try:
            return sorted(f for f in self.root.iterdir() if _NAME.fullmatch(f.name) and f.is_dir())
        except FileNotFoundError:
            return []

    def find(self, name: str) -> StoredTake:
        """The take of that name. Raises InputError."""
        found = next((take for take in self.takes() if take.name == name), None)
        if found is None:
            raise InputError("There is no such take.", "It may have been deleted to make room.")
        return found

    def delete(self, name: str) -> None:
        """Delete a take. Raises InputError if it is unknown or being recorded, OutputError."""
        with self._lock:
            take = self.find(name)
            if take.running:
                raise InputError("That take is being recorded.", "Stop it first.")
            try:
                shutil.rmtree(take.folder)
            except FileNotFoundError:
                return  # another process was quicker
            except OSError as error:
                raise OutputError(f"The take cannot be deleted: {error.strerror}.", "Delete its folder.") from error

    def _make_room(self, wanted: int) -> bool:
        """Delete the oldest finished takes until `wanted` bytes fit; returns whether they do."""
        takes = [take for take in self.takes() if not _unfinished_start(take)]
        room = self.limit_bytes - sum(take.size for take in takes)
        for take in takes:
            if room >= wanted:
                break
            if not take.running:
                shutil.rmtree(take.folder, ignore_errors=True)
                room += take.size
        return room >= wanted


def is_running(folder: Path) -> bool:
    """Whether a live process is writing this take."""
    return is_held(folder / LOCK_NAME)


def _unfinished_start(take: StoredTake) -> bool:
    """Whether a take has no log: it is just being begun, or its start was interrupted; then its folder is deleted."""
    if (take.folder / LOG_NAME).exists():
        return False
    with suppress(OSError):  # also if it is locked
        HeldLock(take.folder / LOCK_NAME, patience_s=0).release()
        take.folder.rmdir()  # only if it is empty
    return True


def _size(folder: Path) -> int:
    """Bytes of its files; 0 if it has just been deleted."""
    total = 0
    try:
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # the lock of a take that has just ended
                total += file.stat().st_size
    except FileNotFoundError:
        pass
    return total
