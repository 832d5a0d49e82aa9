"""Process-wide settings: how OpenMP threads wait, unless the environment configures it; free memory given back."""

from __future__ import annotations

import ctypes
import os
import threading

import psutil
import pytest

from app.worker.threads import giving_memory_back, limit_spinning
from tests.fakes.stream_server import wait_until

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def test_waiting_threads_sleep_soon() -> None:
    limit_spinning()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) <= 1000


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ACTIVE")
    limit_spinning()
    assert {n: os.environ[n] for n in NAMES if n in os.environ} == {name: "ACTIVE"}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_free_memory_between_things_that_stay_is_given_back() -> None:
    def held_bytes() -> int:
        return psutil.Process().memory_info().rss

    pieces = [bytearray(b"x" * 60_000) for _ in range(1000)]
    del pieces[::2]
    before = held_bytes()
    threads = threading.active_count()
    with giving_memory_back(0.05):
        wait_until(lambda: held_bytes() < before - (15 << 20))
    assert threading.active_count() == threads
