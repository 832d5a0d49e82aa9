"""Every key/value policy equals one plain attention over the full history with that policy's mask and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cache.rotary import Rotary
from tests.parity.kv_comparison import (
    CASES,
    LAYERS,
    Case,
    attention,
    cached_pass,
    compare,
    random_tokens,
    tiny_cache,
    with_options,
)
from tests.parity.kv_reference import GRID, HEAD_DIM, TOKENS, AdaptiveRule, SinkRule

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


@pytest.mark.parametrize("name", CASES)
def test_rotating_once_gives_the_same(name: str, report: Report) -> None:
    """Keys at positions that never change, for policies that keep distances; renewed once a chunk for the others."""
    assert report(f"kv {name}, rotated storage, float64", compare(CASES[name], storage="rotated")) < FLOAT64


def test_the_adaptive_case_both_replaces_and_keeps() -> None:
    made: list[AdaptiveRule] = []

    def rule() -> AdaptiveRule:
        made.append(AdaptiveRule(6, 3, -0.1))
        return made[-1]

    compare(replace(CASES["adaptive-sink"], rule=rule))
    counts = [rule.replacements for rule in made]
    assert all(0 < count < 14 for count in counts), counts


@pytest.mark.parametrize("name", CASES)
def test_eight_bits_cost_little(name: str, report: Report) -> None:
    """Where tokens are chosen by score, a near tie may go the other way, so those are only reported and bounded."""
    differences = compare(CASES[name], storage="int8", dtype=torch.float32)
    largest = report(f"kv {name}, int8 storage, outputs near 1", differences)
    mean = float(torch.cat([d.abs().flatten() for d in differences]).mean())
    chooses = any(part in name for part in ("participative", "heavy", "top-k", "r1-kv"))
    assert mean < (0.05 if chooses else 2e-3)
    assert largest < (2.0 if chooses else 0.03)


def rotated_storage(case: Case, sink: int, window: int, realign: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of the cache, and of keys stored rotated by their index once and for all (Self-Forcing).

    realign: whenever the tail moves, the sink's stored keys are rotated by the gap (as Deep Forcing does).
    """
    cache = tiny_cache(case)
    rotary, generator, frames = Rotary(HEAD_DIM), torch.Generator().manual_seed(0), 2
    stored: list[list[list[torch.Tensor]]] = [[] for _ in range(LAYERS)]
    ours, theirs, sink_base = [], [], 0
    write = torch.arange(TOKENS)

    def table(position: int) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.full((TOKENS,), position)
        return rotary.tables(t, write // GRID[1], write % GRID[1], dtype=torch.float64)

    for begun in range(0, 20, frames):
        cache.begin(0, frames)
        tokens = [random_tokens(generator, frames, torch.float64) for _ in range(LAYERS)]
        ours += cached_pass(cache, tokens, None)
        evicted = max(begun + frames - window, 0)
        base = evicted if realign else 0
        turn = rotary.tables(
            torch.tensor([base - sink_base]), torch.zeros(1), torch.zeros(1), dtype=torch.float64
        )  # fmt: skip
        sink_base = base
        for layer, (queries, keys, values) in enumerate(tokens):
            turned = []
            for part in (queries, keys):
                split = part.split(TOKENS, dim=1)
                turned.append([rotary.rotate(f, *table(begun + i)) for i, f in enumerate(split)])
            history = stored[layer]
            for frame in history[:sink]:
                frame[0] = rotary.rotate(frame[0], *turn)
            history += [[k, v] for k, v in zip(turned[1], values.split(TOKENS, dim=1), strict=True)]
            kept = history[:sink] + history[sink + evicted :] if evicted else history
            k, v = (torch.cat([frame[i] for frame in kept], dim=1) for i in range(2))
            theirs.append(attention(torch.cat(turned[0], dim=1), k, v)[0])
    return ours, theirs


@pytest.mark.parametrize(
    ("name", "sink", "window", "realign"),
    [("window", 0, 5, False), ("sink, absolute positions", 2, 7, False), ("deep-sink", 4, 8, True)],
)
def test_unrotated_storage_is_rotated_storage(name: str, sink: int, window: int, realign: bool, report: Report) -> None:
    ours, theirs = rotated_storage(CASES[name], sink, window, realign)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert report(f"kv {name}, against keys stored rotated, float64", differences) < 1e-11


def test_positions_by_slot_and_a_realigned_sink_are_one_attention(report: Report) -> None:
    case = CASES["deep-sink"]
    slot = with_options(case, positions="slot")
    differences = compare(replace(slot, rule=case.rule))
    assert report("kv deep-sink, by slot against re-aligned, float64", differences) < FLOAT64


def test_without_a_phase_the_dual_cache_is_a_sink_of_the_context(report: Report) -> None:
    case = with_options(CASES["dual"], theta=0.0)
    differences = compare(replace(case, chunks=(5, 2, 2, 2, 2), rule=lambda: SinkRule(9, 5)))
    assert report("kv dual with theta 0, against a plain sink, float64", differences) < FLOAT64


def test_rebuilding_is_a_window_computed_anew(report: Report) -> None:
    """The context is passed first, alone; then the chunk attends to it and itself, at positions 0 to 4."""
    case = Case(policy="rebuild", options={"context_frames": 3}, rule=lambda: SinkRule(5), chunks=(3, 2))
    differences = []
    for seed in range(3):
        differences += compare(replace(case, seed=seed, options={"context_frames": 3, "chunk_frames": 2}))
    assert report("kv rebuild, against the window alone, float64", differences) < FLOAT64


@pytest.mark.parametrize("head_dim", [128, 32])
def test_rotary_tables_are_diffusers(head_dim: int, report: Report) -> None:
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    theirs = WanRotaryPosEmbed(head_dim, (1, 2, 2), 1024)(torch.zeros(1, 4, 5, 6, 8))
    axes = torch.meshgrid(torch.arange(5), torch.arange(3), torch.arange(4), indexing="ij")
    ours = Rotary(head_dim).tables(*(axis.flatten() for axis in axes))
    differences = [a[..., 0::2].reshape(60, 1, -1) - b for a, b in zip(theirs, ours, strict=True)]
    assert report(f"rotary tables of a head of {head_dim}, against diffusers", differences) < 1e-6
