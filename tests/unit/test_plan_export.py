"""Exported graphs know their weights, are checked in every precision, and failures say what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from trt.build import BuildOptions
from trt.errors import PlanError
from trt.export import export_onnx
from trt.library import FLAVOURS
from trt.onnx_check import check_export, decibels, relative_error, run_onnx
from trt.progress import Phases
from trt.weights import WeightSource, changed_constants, digest_of, weights_of

pytest.importorskip("onnxscript", reason="onnxscript is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


class Network(nn.Module):
    """Linear layers over tokens, whose weights the exporter transposes: one of zeros, one symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.zeros, self.symmetric = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.unused = nn.RMSNorm(8), nn.Linear(8, 8)
        with torch.no_grad():
            self.zeros.weight.zero_()
            self.symmetric.weight.copy_(self.symmetric.weight + self.symmetric.weight.t())

    def forward(self, tokens: torch.Tensor, cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = tokens.to(self.zeros.weight.dtype)
        for layer in (*self.layers, self.zeros, self.symmetric):
            hidden = hidden + self.norm(layer(hidden))
        heads = hidden.unflatten(-1, (2, 4)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return (attended.transpose(1, 2).flatten(2).float() * cos.cos(), hidden)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


INPUTS = {"tokens": torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)), "cos": torch.ones(8)}
OUTPUTS = ("attended", "hidden")


def test_names_and_values_of_a_graph(network: Network, tmp_path: Path) -> None:
    exported = export_onnx(network, INPUTS, OUTPUTS, tmp_path)
    assert exported.inputs == ("in_tokens", "in_cos")  # "cos" is also what the exporter calls a value of its own
    assert exported.outputs == ("out_attended", "out_hidden")
    report = check_export(exported, network, INPUTS)
    assert report.how == "float32"
    assert report.worst < 1e-5
    other = {name: 2 * tensor for name, tensor in INPUTS.items()}
    got = run_onnx(exported.file, dict(zip(exported.inputs, other.values(), strict=True)))
    for result, wanted in zip(got, network(*other.values()), strict=True):
        assert relative_error(result, wanted) < 1e-5


def test_weights_are_found_where_only_one_fits(network: Network, tmp_path: Path) -> None:
    sources = export_onnx(network, INPUTS, OUTPUTS, tmp_path).sources
    found = {source.parameter for source in sources.values()}
    weights = weights_of(network)
    for name in ("layers.0.weight", "layers.1.weight", "layers.2.weight", "norm.weight", "layers.0.bias"):
        assert name in found
    assert "symmetric.weight" not in found  # as it is, or transposed? after a change that would matter
    assert not {name for name in found if name.startswith("unused")}
    transposed = next(source for source in sources.values() if source.parameter == "layers.1.weight")
    torch.testing.assert_close(transposed.constant(weights["layers.1.weight"]), network.layers[1].weight.detach().t())
    assert WeightSource.from_json(transposed.as_json()) == transposed
    assert changed_constants(sources, weights) == {}
    with torch.no_grad():
        network.layers[1].weight[0, 1] += 1
    ((_, constant),) = changed_constants(sources, weights_of(network)).items()
    torch.testing.assert_close(constant, network.layers[1].weight.detach().t())


def test_a_digest_is_of_values_only() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    assert digest_of(tensor) == digest_of(tensor.t().contiguous().t())
    assert digest_of(tensor) != digest_of(tensor.t())
    assert digest_of(torch.empty(0)) == digest_of(torch.empty(0, 3))


@pytest.mark.parametrize(
    ("dtype", "how"),
    [(torch.float16, "float16"), (torch.bfloat16, "float32 arithmetic on bfloat16 weights")],
    ids=["float16", "bfloat16"],
)
def test_16_bit_graphs_are_checked(network: Network, tmp_path: Path, dtype: torch.dtype, how: str) -> None:
    network.to(dtype)
    exported = export_onnx(network, INPUTS, OUTPUTS, tmp_path)
    report = check_export(exported, network, INPUTS)
    assert report.how == how
    assert decibels(report.worst) > (50 if dtype is torch.float16 else 90)
    with torch.no_grad():
        network.layers[0].weight.mul_(1.2)
    with pytest.raises(PlanError, match="computes something else than the network") as caught:
        check_export(exported, network, INPUTS)
    assert caught.value.remedy


def test_a_network_that_cannot_be_exported_is_an_error(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x + 1,) if x.sum() > 0 else (x - 1,)

    with pytest.raises(PlanError, match="cannot be exported") as caught:
        export_onnx(Branching(), {"x": torch.ones(3)}, ("y",), tmp_path)
    assert caught.value.remedy


def test_relative_errors() -> None:
    one = torch.ones(4)
    assert relative_error(one * 1.01, one) == pytest.approx(0.01)
    assert relative_error(torch.zeros(4), torch.zeros(4)) == 0
    assert relative_error(torch.full((4,), math.nan), one) == math.inf
    assert relative_error(one, torch.ones(2)) == math.inf
    assert (decibels(0.01), decibels(0), decibels(math.inf)) == (pytest.approx(40), math.inf, -math.inf)


def test_progress_is_that_of_the_outermost_phase() -> None:
    said: list[str] = []
    phases = Phases(said.append, lambda: len(said) > 3)
    phases.start("build", 4)
    phases.start("tactics", 100)
    assert phases.step("tactics", 50)
    assert phases.step("build", 0)
    phases.finish("tactics")
    assert phases.step("build", 1)
    assert not phases.step("build", 2)
    phases.finish("build")
    assert said == ["build: 0%", "build: 25%", "build: 50%", "build: 75%"]


def test_options_are_in_the_key() -> None:
    texts = {str(BuildOptions(**options)) for options in _OPTIONS}
    assert len(texts) == len(_OPTIONS)


_OPTIONS: tuple[Mapping[str, object], ...] = ({}, {"level": 5}, {"refit": True}, {"turing": True})


@pytest.mark.parametrize(
    ("name", "installed", "capability", "said"),
    [
        ("tensorrt-rtx", False, (8, 9), "not installed"),
        ("tensorrt-rtx", True, None, ""),
        ("tensorrt-rtx", True, (8, 9), ""),
        ("tensorrt-rtx", True, (7, 5), ""),
        ("tensorrt-rtx", True, (9, 0), "not 9.0"),
        ("tensorrt-rtx", True, (7, 0), "not 7.0"),
        ("tensorrt", False, (9, 0), "not installed"),
        ("tensorrt", True, (9, 0), ""),
        ("tensorrt", True, None, "needs an NVIDIA card"),
    ],
)
def test_refusals_and_their_remedies(
    name: str, installed: bool, capability: tuple[int, int] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: object() if installed else None)
    refusal = FLAVOURS[name].refusal(capability)
    if not said:
        assert refusal is None
    else:
        assert refusal is not None
        assert said in refusal.message
        assert refusal.remedy
