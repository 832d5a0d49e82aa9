"""The executor of CUDA graphs without a GPU: what runs, what is captured when, and what a replay reads.

A stub that repeats the recorded work replaces graphs; tests/gpu uses real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipelines.backends import captured, cuda_graph
from pipelines.backends.captured import CapturedCalls
from pipelines.backends.cuda_graph import GraphExecutor

CPU = torch.device("cpu")


class Recorded:
    """Repeats what was recorded; recording runs nothing."""

    def __init__(self, body: Callable[[], None]) -> None:
        self.replay = body


@pytest.fixture(autouse=True)
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The capture_error_mode of each recording."""
    made: list[str] = []

    def record(body: Callable[[], None], device: object, pool: object, *, errors: str = "global") -> Recorded:
        made.append(errors)
        return Recorded(body)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for module in (captured, cuda_graph):
        monkeypatch.setattr(module, "record", record)
    return made


def test_a_part_is_run_then_captured_then_replayed_and_done_once_each_time(recordings: list[str]) -> None:
    executor, done = GraphExecutor(torch.device("cuda")), {"a": 0, "b": 0}

    def part(name: str) -> Callable[[], None]:
        def run() -> None:
            done[name] += 1

        return run

    for count, graphs in ((1, 0), (2, 1), (3, 1)):
        executor.run("a", part("a"))
        assert (done["a"], executor.graphs, len(recordings)) == (count, graphs, graphs)
    executor.run("b", part("b"))
    assert (done["b"], executor.graphs) == (1, 1), "another key begins anew"
    executor.invalidate()
    assert executor.graphs == 0
    executor.run("a", part("a"))
    assert (done["a"], executor.graphs) == (4, 0)
    assert recordings == ["thread_local"], "what other threads do, as loading compiled parts, must not break it"


def test_a_call_is_captured_once_it_is_warm_and_replayed_on_new_inputs(recordings: list[str]) -> None:
    calls, runs = CapturedCalls(CPU, warm_calls=3), []

    def double(x: torch.Tensor) -> torch.Tensor:
        runs.append(x.data_ptr())
        return 2 * x

    for number in range(6):
        given = torch.full((2,), float(number))
        assert torch.equal(calls("key", double, given), 2 * given)
        assert calls.graphs == (number >= 2)
    assert len(set(runs)) == 1, "inputs are copied to one address"
    assert recordings == ["thread_local"]
    calls("key", double, torch.ones(3))
    assert calls.graphs == 1, "other shapes are another graph"
    calls.invalidate()
    assert calls.graphs == 0


def test_a_call_without_a_key_is_never_captured() -> None:
    calls, given = CapturedCalls(CPU, warm_calls=1), torch.ones(2)
    for _ in range(3):
        assert calls(None, lambda x: x, given) is given
    assert calls.graphs == 0


def test_graphs_are_bounded() -> None:
    calls = CapturedCalls(CPU, warm_calls=1, max_graphs=2)
    for key in range(4):
        for _ in range(2):
            assert calls(key, lambda x: x + 1, torch.zeros(1)).item() == 1
    assert calls.graphs == 2


def test_an_executor_counts_and_drops_the_graphs_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, device=None: empty_like(tensor))
    executor = GraphExecutor(torch.device("cuda"))
    for _ in range(2):
        executor.calls(warm_calls=1)("key", lambda x: x + 1, torch.zeros(1))
    assert executor.graphs == 2, "each has graphs of its own"
    executor.invalidate()
    assert executor.graphs == 0
