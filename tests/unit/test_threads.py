"""How OpenMP threads wait: set for the process, unless its environment configures it."""

from __future__ import annotations

import os

import pytest

from app.worker.threads import limit_spinning

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
