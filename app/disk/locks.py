"""Lock files: who holds one is alive. The system releases it when its process dies, however that happens.

Process numbers are no such proof: containers that share a folder have numbers of their own, and every run of a
container has the same ones. Independent of what is locked.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import time
from contextlib import suppress
from pathlib import Path

from .private import open_private

_PATIENCE_S = 1.0  # a look at a lock holds it for microseconds
_RETRY_S = 0.002


class HeldLock:
    """Holds the lock file `path`, which is created, until `release`.

    Raises BlockingIOError if another holder keeps it for longer than `patience_s`, and OSError if the file cannot be
    made.
    """

    def __init__(self, path: Path, *, patience_s: float = _PATIENCE_S) -> None:
        self.path = path
        until_s = time.monotonic() + patience_s
        while (file := _locked(path)) is None:
            if time.monotonic() >= until_s:
                raise BlockingIOError(errno.EWOULDBLOCK, "another process holds it", str(path))
            time.sleep(_RETRY_S)
        self._file = file

    def release(self) -> None:
        """Delete the file and give the lock up. Never raises; idempotent."""
        with suppress(OSError):  # the folder may be gone, or its disk
            if not self._file.closed:
                self.path.unlink(missing_ok=True)  # first: it never stands there unlocked
        with suppress(OSError):
            self._file.close()


def _locked(path: Path) -> io.FileIO | None:
    """The open, locked file; None if someone else holds it or has just deleted it."""
    file = open_private(path, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


def is_held(path: Path) -> bool:
    """Whether a live process of this machine holds that lock; containers on one folder see each other's."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False
