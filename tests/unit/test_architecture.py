"""ARCHITECTURE.md describes the tree as it is: its paths exist, and every room is in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
PATHS = re.compile(r"(?:[a-z0-9_]+/)+(?:[a-z0-9_]+\.(?:py|js|md))?|[a-z0-9_-]+\.(?:py|js|md)")
ROOMS = ("app", "pipelines", "cache", "trt", "assets", "train", "bench", "examples", "docs")


def test_every_path_exists() -> None:
    """Paths may leave out their first folders, where the text says which room it is about."""
    tree = ["/ARCHITECTURE.md", "/README.md"]
    for room in ROOMS:
        paths = [ROOT / room, *(ROOT / room).rglob("*")]
        tree += [f"/{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in paths]
    named = PATHS.findall(TEXT)
    assert len(named) > 100
    assert not sorted({path for path in named if not any(entry.endswith(f"/{path}") for entry in tree)})


def test_every_room_is_described() -> None:
    rooms = [
        folder.name
        for parent in ("app", "pipelines")
        for folder in sorted((ROOT / parent).iterdir())
        if (folder / "__init__.py").is_file()
    ]
    assert len(rooms) > 20
    assert not [room for room in rooms if f"`{room}/`" not in TEXT]
