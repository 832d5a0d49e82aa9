"""The folder of all recordings: names, the quota, and deletion of the oldest to stay below it.

Names are made here, never taken from a request, and contain the id that clients use. Independent of sessions and
codecs.
"""

from __future__ import annotations

import re
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.disk.locks import HeldLock, is_held
from app.disk.names import STAMP, stamp_after
from app.disk.private import private_folder
from pipelines.core.errors import InputError, OutputError

GIB = 2**30
MIN_BYTES = 64 * 2**20
_AHEAD_BYTES = 8 * 2**20  # more than a second's frames, after which a recording asks again
_NAME = re.compile(STAMP + r"-([0-9a-f]{32})\.mp4")
_ALL = re.compile(r"\.?(" + STAMP + r"-[0-9a-f]{32})(?:\.final)?\.mp4")  # including unfinished copies
_OURS = re.compile(STAMP + r"-[0-9a-f]{32}\.")
_LOCK = re.compile(r"\." + STAMP + r"-[0-9a-f]{32}\.lock")  # held while that recording is written


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecording:
    """size: bytes so far. running: it is still being written."""

    id: str
    path: Path
    size: int
    running: bool


class RecordingStore:
    """Recordings under `root`, at most `limit_bytes` in total. Thread-safe."""

    def __init__(self, root: Path, limit_bytes: int = 10 * GIB) -> None:
        if limit_bytes < MIN_BYTES:
            raise InputError(f"{limit_bytes} bytes are too few for recordings.", f"Allow {MIN_BYTES} or more.")
        self.root = root
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._running: dict[str, HeldLock] = {}

    def begin(self) -> Path:
        """A new file's path, running until `ended`. Raises OutputError if the folder cannot be made or is full."""
        with self._lock:
            if not self._make_room(MIN_BYTES):
                raise OutputError("There is no room for another recording.", "Delete some, or allow more.")
            recording = secrets.token_hex(16)
            try:
                private_folder(self.root)
                self._delete_orphans()
                named = (path.name.lstrip(".") for path in self.root.iterdir())
                newest = max((name for name in named if _OURS.match(name)), default=None)
                stem = f"{stamp_after(newest)}-{recording}"
                self._running[recording] = HeldLock(self._lock_of(stem))
            except OSError as error:
                raise OutputError(
                    f"A recording cannot be begun: {error.strerror}.", "Is the disk full, or the data folder read-only?"
                ) from error
            return self.root / f"{stem}.mp4"

    def ended(self, path: Path) -> None:
        """Mark a recording as complete."""
        with self._lock:
            lock = self._running.pop(recording_id(path.name), None)
            if lock is not None:
                lock.release()

    def may_grow(self) -> bool:
        """Whether recordings may grow further; makes room if possible.

        Room is kept for what all running ones may write before they ask again, so that the total stays below the limit.
        """
        with self._lock:
            return self._make_room(min(len(self._running) * _AHEAD_BYTES, self._limit_bytes // 2))

    def find(self, recording: str) -> StoredRecording | None:
        """The recording with that id; None if unknown or ended without a frame."""
        for path in self._files():
            found = _NAME.fullmatch(path.name)
            if found is not None and secrets.compare_digest(found[1].encode(), recording.encode()):
                running = self._in_use(path)
                return StoredRecording(id=found[1], path=path, size=_size(path), running=running)
        return None

    def delete(self, recording: StoredRecording) -> None:
        """Delete a recording. Raises InputError while it is being written."""
        if recording.running:
            raise InputError("That recording is still being written.", "Stop it first.")
        recording.path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Oldest first."""
        if not self.root.is_dir():
            return []
        found = (path for path in self.root.iterdir() if _ALL.fullmatch(path.name))
        return sorted(found, key=lambda path: path.name.lstrip("."))

    def _make_room(self, wanted: int) -> bool:
        files = self._files()
        used = {path for path in files if self._in_use(path)}
        copies = {path for path in used if path.name.startswith(".")}  # of seconds: nothing is deleted for them
        room = self._limit_bytes - sum(_size(path) for path in files if path not in copies)
        for path in files:
            if room >= wanted:
                break
            if path not in used:
                room += _size(path)
                path.unlink(missing_ok=True)
        return room >= wanted

    def _lock_of(self, stem: str) -> Path:
        return self.root / f".{stem}.lock"

    def _in_use(self, path: Path) -> bool:
        """Whether a live process, this one or another on the same folder, is writing it."""
        found = _ALL.fullmatch(path.name)
        return found is not None and is_held(self._lock_of(found[1]))

    def _delete_orphans(self) -> None:
        """Delete the locks of killed processes, and the copies that they did not finish."""
        for path in tuple(self.root.iterdir()):
            with suppress(OSError):  # someone holds it, or was quicker
                if _LOCK.fullmatch(path.name):
                    HeldLock(path, patience_s=0).release()
                elif path.name.startswith(".") and _ALL.fullmatch(path.name) and not self._in_use(path):
                    path.unlink()


def recording_id(name: str) -> str:
    """The id in a file name made by `begin`."""
    found = _NAME.fullmatch(name)
    assert found is not None, name
    return found[1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
