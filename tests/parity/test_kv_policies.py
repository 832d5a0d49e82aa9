"""Every key/value policy equals one plain attention over the full history with that policy's mask and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.parity.kv_comparison import CASES, compare
from tests.parity.kv_reference import AdaptiveRule

Report = Callable[[str, list[torch.Tensor]], float]

FLOAT32 = 2e-5
"""Of outputs near 1: sums of up to 72 products, and softmax, in float32."""
FLOAT64 = 1e-12


@pytest.mark.parametrize("name", CASES)
def test_a_policy_is_attention_over_the_full_history_with_its_mask_and_positions(name: str, report: Report) -> None:
    case = CASES[name]
    assert report(f"kv {name}, float64", compare(case)) < FLOAT64
    assert report(f"kv {name}, float32", compare(case, dtype=torch.float32)) < FLOAT32


@pytest.mark.parametrize("name", CASES)
def test_rotating_in_every_pass_gives_the_same(name: str, report: Report) -> None:
    assert report(f"kv {name}, lean storage, float64", compare(CASES[name], storage="lean")) < FLOAT64


def test_the_adaptive_case_both_replaces_and_keeps() -> None:
    made: list[AdaptiveRule] = []

    def rule() -> AdaptiveRule:
        made.append(AdaptiveRule(6, 3, -0.1))
        return made[-1]

    compare(replace(CASES["adaptive-sink"], rule=rule))
    counts = [rule.replacements for rule in made]
    assert all(0 < count < 14 for count in counts), counts
