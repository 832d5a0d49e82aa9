"""Fixtures of all tests: torch uses one thread in this process, and nothing is compiled beside the engines of tests.

The networks of the tests are tiny: two threads take twice the CPU time for the same result, and far longer when
something else runs on the machine. Commands started by tests choose their threads themselves, as for users. Tests that
are about plans set ZOETROPE_PLANS to a folder of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

os.environ["ZOETROPE_PLANS"] = "off"  # read by commands that tests start, too
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as our commands have it: processes of tests share the cores


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Applies only if a collected test has imported torch, so that others need not load it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
