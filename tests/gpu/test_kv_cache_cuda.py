"""The key/value cache on CUDA: a captured pass is replayed for later chunks; neither `begin` nor a pass
synchronises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cache.kv.cache import KVCache, KVShape
from cache.kv.policies import make_policy
from cache.kv.view import KVView
from cache.rotary import Rotary
from tests.fakes.small_kv import GRID, HEAD_DIM, HEADS, LAYERS, TOKENS
from tests.fakes.small_kv import POLICIES as SMALL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
POLICIES = {name: options for name, options in SMALL.items() if name not in ("full", "deep-sink")}


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def make(name: str, storage: str) -> KVCache:
    policy = make_policy(name, grid=GRID, chunk_frames=2, **POLICIES[name])
    shape = KVShape(layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, grid=GRID, device="cuda")
    return KVCache(shape, policy, rotary=Rotary(HEAD_DIM), storage=storage)


def one_pass(view: KVView, given: torch.Tensor, results: list[torch.Tensor]) -> None:
    """Run all layers; what they attend to is appended to `results`."""
    for layer, (queries, keys, values) in enumerate(given):
        if view.observes:
            view.observe(layer, Rotary(HEAD_DIM).rotate(queries, *view.query_rotation))
        for part, result in zip(view.exchange(layer, keys, values), results[2 * layer :], strict=False):
            result.copy_(part)


@pytest.mark.parametrize("storage", ["native", "lean", "int8"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_captured_pass_serves_later_chunks(name: str, storage: str) -> None:
    eager, captured = make(name, storage), make(name, storage)
    generator = torch.Generator("cuda").manual_seed(0)
    graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]] = {}
    given = torch.zeros(LAYERS, 3, 1, 2 * TOKENS, HEADS, HEAD_DIM, device="cuda")
    replays = 0
    for chunk in range(18):
        eager.begin(0, 2)
        captured.begin(0, 2)
        for _ in range(2):
            given.normal_(generator=generator)
            one, other = eager.view([0]), captured.view([0])
            shape = (1, one.attended_tokens, HEADS, HEAD_DIM)
            expected = [torch.zeros(shape, device="cuda") for _ in range(2 * LAYERS)]
            one_pass(one, given, expected)
            if chunk < 10:
                one_pass(other, given, [torch.zeros(shape, device="cuda") for _ in range(2 * LAYERS)])
                continue
            if other.signature not in graphs:
                torch.cuda.synchronize()
                graph, results = torch.cuda.CUDAGraph(), [torch.zeros(shape, device="cuda") for _ in range(2 * LAYERS)]
                with torch.cuda.graph(graph):
                    one_pass(other, given, results)
                graphs[other.signature] = graph, results
            graph, results = graphs[other.signature]
            graph.replay()
            replays += 1
            for a, b in zip(expected, results, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert replays == 16
    assert len(graphs) <= 2


@pytest.mark.parametrize("storage", ["native", "lean", "int8"])
@pytest.mark.parametrize("name", POLICIES)
def test_neither_a_beginning_nor_a_pass_waits(name: str, storage: str, request: pytest.FixtureRequest) -> None:
    cache = make(name, storage)
    given = torch.ones(LAYERS, 3, 1, 2 * TOKENS, HEADS, HEAD_DIM, device="cuda")
    request.getfixturevalue("no_waiting")
    for _ in range(8):
        cache.begin(0, 2)
        view = cache.view([0])
        for layer, (queries, keys, values) in enumerate(given):
            view.observe(layer, queries)
            view.exchange(layer, keys, values)
