"""The forms that parts take for OpenVINO, on tiny networks: group norms, rows on threads of their own, orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cache.rotary import rotate_pairs
from pipelines.backends.openvino.convert import converted
from pipelines.backends.openvino.library import OPENVINO, core, refusal_of
from pipelines.backends.openvino.norms import rewrite_group_norms
from pipelines.backends.openvino.runtime import OpenVINOCall, Output
from pipelines.core.parts import Part, Tensors
from pipelines.video.codecs.tiny_layers import TimeGrow
from pipelines.video.parts import _SwappedPairs

_MISSING = refusal_of(OPENVINO)
needs_openvino = pytest.mark.skipif(_MISSING is not None, reason="" if _MISSING is None else _MISSING.message)


class _Normed(nn.Module):
    """A group norm with scale and shift of its own, and a second one that is modulated as in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(4, 8), nn.GroupNorm(2, 8, eps=1e-3)
        for norm in (self.first, self.second):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> Tensors:
        scale, shift = modulation[:, :, None, None].chunk(2, 1)
        return (self.second(F.silu(self.first(x))) * (1 + scale) + shift,)


@needs_openvino
@torch.no_grad()
def test_rewritten_group_norms_compute_group_norms() -> None:
    """In float32, on features whose means are as large as their deviations; any number of rows."""
    torch.manual_seed(0)
    module = _Normed()
    inputs = {"x": torch.randn(2, 8, 6, 5) + torch.randn(2, 8, 1, 1), "modulation": torch.randn(2, 16)}
    with converted(Part(name="denoise", module=module, inputs=inputs), narrow_weights=False) as model:
        rewrite_group_norms(model)
        kinds = [op.get_type_name() for op in model.get_ordered_ops()]
        assert "GroupNormalization" not in kinds
        compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for rows in (2, 3):
            given = (torch.randn(rows, 8, 6, 5) + torch.randn(rows, 8, 1, 1), torch.randn(rows, 16))
            found = torch.from_numpy(np.array(compiled([tensor.numpy() for tensor in given])[0]))
            torch.testing.assert_close(found, module(*given)[0], rtol=1e-4, atol=1e-4)


class _Sums(nn.Module):
    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> Tensors:
        return (x * factor[:, :, None, None] + 1,)


def _call(inputs: dict[str, torch.Tensor], output: Output, threads: int) -> OpenVINOCall:
    part = Part(name="denoise", module=_Sums(), inputs=inputs)
    with converted(part, narrow_weights=False) as model:
        return OpenVINOCall(model, part, [output], threads, in_rows=True)


@needs_openvino
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_rows_and_orders_do_not_change_results(rows: int, channels_last: bool) -> None:
    """Two threads share even numbers of rows; small whole numbers are exact in bfloat16 too."""
    order = torch.channels_last if channels_last else torch.contiguous_format

    def inputs(start: int) -> Tensors:
        x = (torch.arange(rows * 3 * 4 * 2).view(rows, 3, 4, 2) + start) % 11
        return x.float().contiguous(memory_format=order), ((torch.arange(rows * 3) + start) % 5).view(rows, 3).float()

    first = inputs(0)
    call = _call(
        dict(zip(("x", "factor"), first, strict=True)),
        Output(dtype=torch.float32, channels_last=channels_last),
        threads=2,
    )
    for start in range(3):
        given = inputs(start)
        (found,) = call(*given)
        assert torch.equal(found, _Sums()(*given)[0])
        assert found.is_contiguous(memory_format=order)


@needs_openvino
@torch.no_grad()
def test_an_input_in_another_order_is_copied() -> None:
    x, factor = torch.arange(24.0).view(1, 3, 4, 2), torch.ones(1, 3)
    call = _call({"x": x, "factor": factor}, Output(dtype=torch.float32), threads=1)
    given = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(call(given, factor)[0], x + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exchanging_pairs_rotates_bit_for_bit(dtype: torch.dtype) -> None:
    x, angles = torch.randn(2, 7, 3, 8, dtype=dtype), torch.randn(2, 7, 1, 4)
    rotary = _SwappedPairs(8, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6]))
    found = rotary.rotate(x, *rotary.whole(angles.cos(), angles.sin()))
    assert found.dtype is dtype
    assert torch.equal(found, rotate_pairs(x, angles.cos(), angles.sin()))


class _Grown(nn.Module):
    def __init__(self, layer: TimeGrow, batch: int) -> None:
        super().__init__()
        self.layer, self.batch = layer, batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, self.batch)


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_exported_time_layers_order_frames_as_the_eager_ones(batch: int) -> None:
    module = _Grown(TimeGrow(3, 2), batch)
    x = torch.randn(4, 3, 2, 2)
    exported: Sequence[torch.Tensor] = torch.export.export(module, (x,), strict=False).module()(x)
    torch.testing.assert_close(exported, module(x))
