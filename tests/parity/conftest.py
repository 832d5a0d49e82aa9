"""Collects the differences that parity tests measure and prints them at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

_KEY = pytest.StashKey[list[str]]()

Report = Callable[[str, list[torch.Tensor]], float]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Return report(name, differences), which keeps the largest and mean absolute difference and returns the
    largest."""

    def add(name: str, differences: list[torch.Tensor]) -> float:
        magnitudes = torch.cat([d.abs().double().flatten() for d in differences])
        largest, mean = float(magnitudes.max()), float(magnitudes.mean())
        request.config.stash.setdefault(_KEY, []).append(f"{name:<66} max {largest:.2e}  mean {mean:.2e}")
        return largest

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_KEY, [])
    if lines:
        terminalreporter.section("parity: absolute differences")
        for line in lines:
            terminalreporter.write_line(line)
