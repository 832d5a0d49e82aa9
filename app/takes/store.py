"""The folder of all takes: names, the quota, and deletion of the oldest to stay below it.

A take being written is locked by its process, so that a dead process leaves none running. Names are made here, never
taken from a request. Independent of sessions.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from app.media.private_files import private_folder
from pipelines.core.errors import InputError, OutputError

from .writer import LOCK_NAME, LOG_NAME

_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
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

    def create(self) -> Path:
        """Make an empty folder for a new take, deleting the oldest finished takes if necessary.

        Raises TakesFullError, OutputError.
        """
        with self._lock:
            if not self._make_room(self._min_room_bytes):
                raise TakesFullError(
                    f"There is no room for another take: takes being recorded fill the {self.limit_bytes / _GIB:.1f} "
                    "GiB allowed.",
                    "Stop one of them, or allow more.",
                )
            stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
            folder = self.root / f"{stamp}-{secrets.token_hex(4)}"
            try:
                private_folder(self.root)
                private_folder(folder)
            except OSError as error:
                raise OutputError(f"A folder for the take cannot be created: {error.strerror}.") from error
            return folder

    def may_grow(self) -> bool:
        """For TakeWriter: whether takes may grow further; makes room if possible."""
        with self._lock:
            return self._make_room(0)

    def takes(self) -> tuple[StoredTake, ...]:
        """All takes, oldest first."""
        if not self.root.is_dir():
            return ()
        folders = sorted(folder for folder in self.root.iterdir() if _NAME.fullmatch(folder.name))
        return tuple(
            StoredTake(name=f.name, folder=f, size=_size(f), running=is_running(f)) for f in folders if f.is_dir()
        )

    def find(self, name: str) -> StoredTake:
        """The take of that name. Raises InputError."""
        found = next((take for take in self.takes() if take.name == name), None)
        if found is None:
            raise InputError("There is no such take.", "It may have been deleted to make room.")
        return found

    def delete(self, name: str) -> None:
        """Delete a take. Raises InputError if it is unknown or being recorded."""
        with self._lock:
            take = self.find(name)
            if take.running:
                raise InputError("That take is being recorded.", "Stop it first.")
            shutil.rmtree(take.folder)

    def _make_room(self, wanted: int) -> bool:
        """Delete the oldest finished takes until `wanted` bytes fit; returns whether they do."""
        takes = self.takes()
        room = self.limit_bytes - sum(take.size for take in takes)
        for take in takes:
            if room >= wanted:
                break
            if not take.running and (take.folder / LOG_NAME).exists():  # without a log it is just being created
                shutil.rmtree(take.folder, ignore_errors=True)
                room += take.size
        return room >= wanted


def is_running(folder: Path) -> bool:
    """Whether a live process is writing this take."""
    try:
        with (folder / LOCK_NAME).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue  # the lock of a take that has just ended
    return total
