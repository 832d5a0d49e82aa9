"""What a runner decides on the host: addresses, dtypes, graphs, refits, refusals. A fake stands for TensorRT."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.fakes.tensorrt_api import WEIGHTS, Card, DataType, Diagnostics, FakeStreams, Validity, aligned, fake_library
from trt.build import DESCRIPTION_FILE, PLAN_FILE, PlanDescription
from trt.errors import PlanError
from trt.messages import plain
from trt.runner import PlanRunner
from trt.runtime_cache import read_sealed, write_sealed
from trt.streams import Action, GraphChoice
from trt.weights import WeightSource, digest_of

CPU = torch.device("cpu")
LINEAR = {"linear.weight": WEIGHTS["w"].t().contiguous(), "linear.bias": WEIGHTS["b"]}
"""A module's weights, of which the graph's are `WEIGHTS`: transposed by the exporter."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stored plan: files/ in its home."""
    files = tmp_path / "home" / "files"
    files.mkdir(parents=True)
    (files / PLAN_FILE).write_bytes(b"plan")
    sources = {
        "w": WeightSource(
            parameter="linear.weight", order=(1, 0), shape=(2, 2), digest=digest_of(LINEAR["linear.weight"])
        ),
        "b": WeightSource(parameter="linear.bias", order=(0,), shape=(2,), digest=digest_of(LINEAR["linear.bias"])),
    }
    description = PlanDescription(
        inputs=("in_x",), outputs=("out_y",), refit=True, sources=sources, library="", check=""
    )
    description.write(files)
    assert PlanDescription.read(files) == description
    return files


def runner(card: Card, folder: Path, name: str = "tensorrt-rtx") -> PlanRunner:
    return PlanRunner(fake_library(card, name), folder, FakeStreams(card), CPU)


def expected(x: torch.Tensor, weights: dict[str, torch.Tensor] = WEIGHTS) -> torch.Tensor:
    return x @ weights["w"] + weights["b"]


def test_equal_addresses_run_then_are_captured_then_replayed(folder: Path) -> None:
    card = Card()
    plan = runner(card, folder)
    x = aligned(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    for call in range(4):
        x += call  # new values at the same address
        (y,) = plan(x)
        torch.testing.assert_close(y, expected(x), rtol=0, atol=0)
    assert card.log == [("run", 7), ("captured", 9), ("replay", 0), ("replay", 0), ("replay", 0)]


def test_two_buffers_in_turns_have_a_graph_each(folder: Path) -> None:
    card = Card()
    plan = runner(card, folder)
    buffers = [aligned(torch.ones(2, 2)), aligned(torch.zeros(2, 2))]
    for call in range(6):
        x = buffers[call % 2]
        x += call
        torch.testing.assert_close(plan(x)[0], expected(x), rtol=0, atol=0)
    assert [what for what, _ in card.log].count("captured") == 2


def test_inputs_that_tensorrt_cannot_read_in_place_are_copied_to_a_fixed_address(folder: Path) -> None:
    card = Card()
    plan = runner(card, folder)
    for call in range(3):
        for x in (aligned(torch.arange(4.0).view(2, 2) + call).t(), aligned(torch.ones(2, 4))[:, 1:3] * 1.0 + call):
            unaligned = torch.empty(5)[1:].view(2, 2).copy_(x)
            for tensor in (x, unaligned):
                torch.testing.assert_close(plan(tensor)[0], expected(tensor), rtol=0, atol=0)
    assert [what for what, _ in card.log].count("captured") <= 2


def test_within_someone_elses_capture_the_plan_is_only_enqueued(folder: Path) -> None:
    card = Card(being_captured_by_caller=42)
    plan = runner(card, folder)
    for _ in range(3):
        plan(aligned(torch.ones(2, 2)))
    assert card.log == [("run", 42)] * 3


def test_what_cannot_be_captured_runs(folder: Path) -> None:
    card = Card(capturable=False)
    plan, x = runner(card, folder), aligned(torch.ones(2, 2))
    for _ in range(3):
        torch.testing.assert_close(plan(x)[0], expected(x))
    assert card.log == [("run", 7)] * 3
    card = Card(capturable=False)
    plan = runner(card, folder, "tensorrt")  # which has no such question
    for _ in range(3):
        plan(x)
    assert card.log[-1] == ("replay", 0)


def test_addresses_that_never_recur_are_not_captured() -> None:
    choice = GraphChoice(most=3)
    assert [choice.choose(address) for address in range(100)] == [Action.RUN] * 100
    assert [choice.choose(0) for _ in range(2)] == [Action.CAPTURE, Action.REPLAY]
    choice.forget()
    assert [choice.choose(0) for _ in range(2)] == [Action.CAPTURE, Action.REPLAY]


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.ones(3, 2),),
        (torch.ones(2, 2, dtype=torch.float16),),
        (torch.ones(2, 2), torch.ones(2, 2)),
        (),
    ],
)
def test_inputs_of_another_shape_or_dtype_are_refused(folder: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    card = Card()
    with pytest.raises(PlanError, match="The plan"):
        runner(card, folder)(*inputs)
    assert card.log == []


def test_outputs_have_the_plans_dtype(folder: Path) -> None:
    (output,) = runner(Card(output=DataType.HALF), folder).outputs
    assert output.dtype is torch.float16
    with pytest.raises(PlanError, match="FP4"):
        runner(Card(output=DataType.FP4), folder)


@pytest.mark.parametrize(
    ("diagnostics", "said"),
    [
        (Diagnostics.UNSUPPORTED_CC, "not for this card's compute capability"),
        (Diagnostics.VERSION_MISMATCH, "another version of the library"),
        (Diagnostics.OLD_CUDA_DRIVER, "driver is too old"),
        (Diagnostics.MALFORMED_ENGINE | Diagnostics.CUDA_ERROR, "damaged"),
        (Diagnostics(0), "no cause"),
    ],
)
def test_a_plan_that_cannot_run_here_is_refused_with_the_remedy(
    folder: Path, diagnostics: Diagnostics, said: str
) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        runner(Card(validity=(Validity.INVALID, diagnostics)), folder)
    assert caught.value.remedy


def test_failures_of_loading_and_running_are_errors(folder: Path) -> None:
    with pytest.raises(PlanError, match="cannot be loaded here"):
        runner(Card(loads=False), folder)
    card = Card(runs=False)
    with pytest.raises(PlanError, match="failed"):
        runner(card, folder)(aligned(torch.ones(2, 2)))
    (folder / DESCRIPTION_FILE).write_text("{}")
    with pytest.raises(PlanError, match="description"):
        runner(Card(), folder)


def test_new_weights_reach_the_plan_and_its_graphs(folder: Path) -> None:
    """The graph has the transposed weight; a weight that changes back is changed back in the plan."""
    card = Card()
    plan, x = runner(card, folder), aligned(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert plan.update(LINEAR) == 0
    for _ in range(3):
        plan(x)
    changed = {**LINEAR, "linear.weight": torch.tensor([[1.0, 5.0], [7.0, 2.0]])}
    assert plan.update(changed) == 1
    for _ in range(3):
        (y,) = plan(x)
        torch.testing.assert_close(y, torch.nn.functional.linear(x, changed["linear.weight"], LINEAR["linear.bias"]))
    assert card.log[4:] == [("refit", 7), ("captured", 9), ("replay", 0), ("replay", 0), ("replay", 0)]
    plan.update(LINEAR)
    torch.testing.assert_close(plan(x)[0], expected(x))


@pytest.mark.parametrize("card", [Card(rejected="w"), Card(needs_too=("b",))], ids=["rejected", "missing"])
def test_a_refit_that_the_plan_does_not_take_is_an_error(folder: Path, card: Card) -> None:
    changed = {**LINEAR, "linear.weight": torch.zeros(2, 2)}
    with pytest.raises(PlanError, match="cannot be changed"):
        runner(card, folder).update(changed)
    with pytest.raises(PlanError, match="cannot be changed"):
        runner(Card(), folder).update({**LINEAR, "linear.weight": torch.zeros(2, 2, dtype=torch.float16)})


def test_a_plan_with_its_own_weights_takes_no_others(folder: Path) -> None:
    PlanDescription(inputs=("in_x",), outputs=("out_y",), refit=False, sources={}, library="", check="").write(folder)
    with pytest.raises(PlanError, match="contains its weights"):
        runner(Card(), folder).update(LINEAR)


def test_compiled_kernels_are_kept_beside_the_plan_and_damaged_ones_are_not_used(folder: Path) -> None:
    card = Card()
    plan = runner(card, folder)
    plan.save_runtime_cache()
    (kept,) = (folder.parent / "runtime").iterdir()
    again = Card()
    runner(again, folder)
    assert again.kernels_loaded == b"kernels"
    os.truncate(kept, kept.stat().st_size - 1)
    damaged = Card()
    runner(damaged, folder)
    assert damaged.kernels_loaded == b""
    assert not kept.exists()


def test_sealed_files(tmp_path: Path) -> None:
    file = tmp_path / "runtime" / "a.cache"
    assert read_sealed(file) == b""
    write_sealed(file, b"content")
    assert read_sealed(file) == b"content"
    file.write_bytes(b"short")
    assert read_sealed(file) == b""
    assert list(file.parent.iterdir()) == []


def test_errors_of_tensorrt_are_said_without_their_places_in_its_source() -> None:
    said = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile operation "
        "'node_MatMul_41' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at /_src/pass.cpp:2012)"
    )
    assert plain(said) == "Cannot compile operation 'node_MatMul_41' for Turing (SM75): FP32 GEMM is not supported"
