"""Deferred packages: parts are imported alone, everything else is there as soon as somebody asks for it."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from pipelines.core.deferred import Deferral, defer, run

INIT = """
import {name}_log
{name}_log.runs.append("whole")
from .other import OTHER
from . import slow
NAME = "real"
"""


class Package:
    """A package on disk. runs: which of its modules have run, in order."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.runs: list[str] = []
        log = ModuleType(f"{name}_log")
        log.__dict__["runs"] = self.runs
        sys.modules[log.__name__] = log
        root = folder / name
        root.mkdir()
        (root / "__init__.py").write_text(INIT.format(name=name), encoding="utf-8")
        for part in ("alone", "other", "slow"):
            text = f"import {name}_log\n{name}_log.runs.append('{part}')\n{part.upper()} = '{part}'\n"
            (root / f"{part}.py").write_text(text, encoding="utf-8")

    def part(self, name: str = "") -> ModuleType:
        """Import it, or one of its parts."""
        return importlib.import_module(f"{self.name}.{name}" if name else self.name)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    name = f"deferred_{tmp_path.name}".replace("-", "_")
    yield Package(tmp_path, name)
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_parts_are_imported_alone_and_the_rest_when_it_is_asked_for(package: Package) -> None:
    defer({package.name: Deferral()})
    assert package.part("alone").ALONE == "alone"
    whole = package.part()
    assert package.runs == ["alone"]
    assert whole.alone is package.part("alone")
    assert (whole.NAME, whole.OTHER) == ("real", "other")
    assert package.runs == ["alone", "whole", "other", "slow"]
    assert package.part() is whole
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = whole.nothing


def test_other_parts_than_those_named_run_the_whole_first(package: Package) -> None:
    defer({package.name: Deferral(parts=frozenset({"alone"}))})
    package.part("alone")
    assert package.runs == ["alone"]
    slow = package.part("slow")
    assert package.runs == ["alone", "whole", "other", "slow"]
    assert package.part().slow is slow is sys.modules[slow.__name__]
    assert slow.__spec__ is not None
    assert slow.__spec__.origin == slow.__file__


def test_stand_ins_hold_until_it_runs_and_what_follows_sees_the_real_module(package: Package) -> None:
    seen: list[str] = []
    deferral = Deferral(stand_ins={"NAME": "stand-in", "GONE": 1}, then=lambda module: seen.append(module.NAME))
    defer({package.name: deferral})
    whole = package.part()
    assert (whole.NAME, whole.GONE, package.runs, seen) == ("stand-in", 1, [], [])
    assert whole.OTHER == "other"
    assert (whole.NAME, seen) == ("real", ["real"])
    with pytest.raises(AttributeError, match="GONE"):
        _ = whole.GONE
    run(whole)
    assert package.runs.count("whole") == 1


def test_a_package_that_replaces_itself_answers_through_the_first_module(package: Package, tmp_path: Path) -> None:
    replaces = "import sys, types\nnew = types.ModuleType(__name__)\nnew.NAME = 'new'\nsys.modules[__name__] = new\n"
    (tmp_path / package.name / "__init__.py").write_text(replaces, encoding="utf-8")
    defer({package.name: Deferral()})
    first = package.part()
    assert first.NAME == "new"
    assert package.part() is not first


def test_what_is_imported_already_stays_and_a_second_call_changes_nothing(package: Package) -> None:
    whole = package.part()
    defer({package.name: Deferral(stand_ins={"NAME": "stand-in"})})
    assert package.part() is whole
    assert whole.NAME == "real"
    finders = list(sys.meta_path)
    defer({package.name: Deferral()})
    assert sys.meta_path == finders


def test_an_error_while_it_runs_reaches_whoever_asked(package: Package, tmp_path: Path) -> None:
    (tmp_path / package.name / "__init__.py").write_text("raise RuntimeError('broken')\n", encoding="utf-8")
    defer({package.name: Deferral()})
    whole = package.part()
    with pytest.raises(RuntimeError, match="broken"):
        _ = whole.NAME


def test_threads_wait_until_it_has_run(package: Package, tmp_path: Path) -> None:
    init = tmp_path / package.name / "__init__.py"
    init.write_text(f"import time\ntime.sleep(0.2)\n{init.read_text(encoding='utf-8')}", encoding="utf-8")
    defer({package.name: Deferral()})
    whole, together = package.part(), threading.Barrier(4)

    def ask() -> str:
        together.wait()
        name: str = whole.NAME
        return name

    with ThreadPoolExecutor(4) as threads:
        assert [future.result() for future in [threads.submit(ask) for _ in range(4)]] == ["real"] * 4
    assert package.runs.count("whole") == 1
