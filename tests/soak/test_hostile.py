"""An honest session beside ten hostile clients, and what they leave behind."""

from __future__ import annotations

import pytest

from bench.hostile import Plan, measure


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_ten_hostile_clients_cost_an_honest_session_little_and_leave_nothing() -> None:
    found = measure(Plan())
    assert found["alone"]["fps"] > 25, found
    assert found["fps_ratio"] >= 0.8, found
    assert found["p95_ratio"] <= 1.5, found
    assert found["memory_after_mb"] < 20, found
