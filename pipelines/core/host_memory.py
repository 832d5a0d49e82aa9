"""Owns how much memory the host has free, within the limit of its container. Independent of devices and tensors."""

from __future__ import annotations

from pathlib import Path

CGROUP_FOLDER = Path("/sys/fs/cgroup")


def free_host_bytes(cgroup: Path = CGROUP_FOLDER) -> int:
    """Return the bytes that can be taken without swapping. cgroup: the folder of the container's control group."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = _cgroup_number(cgroup / "memory.max"), _cgroup_number(cgroup / "memory.current")
    return available if limit is None or used is None else min(available, max(limit - used, 0))


def used_host_bytes() -> int:
    """Return the resident bytes of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def gib(count: float) -> str:
    """'3.5 GiB'."""
    return f"{count / 2**30:.1f} GiB"


def _cgroup_number(file: Path) -> int | None:
    """Read a number of a control group (version 2); None if there is no limit or no such group."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
