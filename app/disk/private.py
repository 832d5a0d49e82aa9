"""Folders and files of the data folder that other users of the machine cannot read: 0700 and 0600, whatever the umask.

Independent of what is kept in them.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

_FOLDER, _FILE, _OTHERS = 0o700, 0o600, 0o077
CHILD_UMASK = 0o077
"""For processes that write such files themselves."""


def private_folder(path: Path) -> None:
    """Make the folder, if it is not there; one of this user's that others could read is closed. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=_FOLDER, exist_ok=True)
    found = path.stat()
    if found.st_mode & _OTHERS and found.st_uid == os.geteuid():  # another's keeps the rights that its owner gave it
        path.chmod(_FOLDER)


def private_file(path: Path) -> None:
    """Make an empty file, for a library that opens it by its name. Raises OSError, also if there is one."""
    open_private(path).close()


def open_private(path: Path, mode: str = "x") -> io.FileIO:
    """Open a file for writing, unbuffered. mode: "x" for a new one, "w" to empty one that is there. Raises OSError."""
    return io.FileIO(path, mode, opener=_open)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags, _FILE)
