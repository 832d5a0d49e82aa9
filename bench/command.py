"""Owns what the commands of all benches share: the parser, and how a result is printed. Independent of measurements."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping


def bench_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option --json. name: of the module in bench/. description: its docstring."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line instead of a listing")
    return parser


def print_listing(result: Mapping[str, object], *, one_line: bool) -> None:
    """Print a result as JSON, indented unless it shall be one line."""
    sys.stdout.write(json.dumps(result, indent=None if one_line else 1) + "\n")


def print_runs(figures: Mapping[str, object], *, one_line: bool) -> None:
    """Print figures as one line of JSON or, one below the other, what is common and each of `runs`, a list."""
    if one_line:
        print_listing(figures, one_line=True)
        return
    runs = figures["runs"]
    assert isinstance(runs, list)
    for line in ({name: value for name, value in figures.items() if name != "runs"}, *runs):
        print("  ".join(f"{name}={value}" for name, value in line.items()))
