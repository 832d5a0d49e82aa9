"""bench.start measures the commands that it is asked for, in new processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.start import measure, rows

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.start", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_row_is_measured_and_printed_as_one_line() -> None:
    answer = bench("--json", "--runs", "1", "--rows", "help")
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["bench"] == "start"
    seconds = found["help"]["s"]
    assert 0 < seconds["lowest"] == seconds["median"] == seconds["highest"]


def test_an_unknown_row_is_refused() -> None:
    answer = bench("--rows", "lunch")
    assert answer.returncode == 2
    assert "unknown rows: lunch; known: help, models, doctor, render mini-image" in answer.stderr


def test_the_first_run_is_not_counted() -> None:
    seconds = iter((9.0, 1.0, 4.0, 2.0))
    assert measure(lambda: {"s": next(seconds)}, 3) == {"s": {"median": 2.0, "lowest": 1.0, "highest": 4.0}}


@pytest.mark.parametrize("model", ["mini-image", "mini-video"])
def test_every_bundled_model_is_rendered_and_streamed(model: str) -> None:
    assert {f"render {model}", f"live {model}"} <= rows([model]).keys()
