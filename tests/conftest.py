"""What holds for every test: tensors are computed on one thread in this process.

The networks of the tests are tiny: two threads take twice the processor time for the same answer, and far longer when
something else runs on the machine. Commands that tests start choose their threads themselves, as users have them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Only where a collected test has imported torch: the others shall not wait for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
