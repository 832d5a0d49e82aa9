"""No two production files import each other, directly or in a longer circle, imports for the type checker included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = ("app", "pipelines", "cache", "trt", "bench", "train")


def modules(root: Path, packages: tuple[str, ...] = PRODUCTION) -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(name: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    """Return the production modules that a file imports, at any level."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" if f"{stem}.{alias.name}" in known else stem for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (target for target in names if target in known and target != name)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that reach each other: strongly connected components of more than one module."""
    reached = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted({name} | {other for other in reached[name] if name in reached[other]}))
        for name in graph
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def test_no_circles() -> None:
    known = modules(ROOT)
    assert len(known) > 300
    assert circles({name: set(imported(name, file, known)) for name, file in known.items()}) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(graph) == [["a", "b", "c"]]


def test_relative_and_type_checking_imports_count(tmp_path: Path) -> None:
    (tmp_path / "app" / "x").mkdir(parents=True)
    (tmp_path / "app" / "x" / "one.py").write_text("from .two import f\n")
    (tmp_path / "app" / "x" / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from app.x import one\n"
    )
    known = modules(tmp_path)
    graph = {name: set(imported(name, file, known)) for name, file in known.items()}
    assert circles(graph) == [["app.x.one", "app.x.two"]]


def test_no_file_is_longer_than_400_lines() -> None:
    long = {name: count for name, file in modules(ROOT).items() if (count := len(file.read_text().splitlines())) > 400}
    assert long == {}
