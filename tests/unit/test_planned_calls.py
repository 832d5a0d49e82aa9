"""Calls of a part use its compiled forms where they fit, padded or split, and the plain network otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.backends.planned import PlannedCalls
from pipelines.core.parts import Part, PartCall, Tensors


class Affine(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Tensors:
        return 2 * x + y, x - y


def make(inputs: dict[str, torch.Tensor]) -> Part:
    return Part(name="affine", module=Affine(), inputs=inputs)


def batch(rows: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    return {name: torch.randn((rows, 3), generator=random) for name in ("x", "y")}


def compiled(sizes: list[int], rows: int) -> PartCall:
    """A compiled form for `rows` rows, which notes in `sizes` that it was called."""

    def call(*inputs: torch.Tensor) -> Tensors:
        assert [len(tensor) for tensor in inputs] == [rows, rows]
        sizes.append(rows)
        return tuple(Affine()(*inputs))

    return call


@pytest.mark.parametrize(
    ("ready", "rows", "called"),
    [
        ([], 2, []),
        ([2], 2, [2]),
        ([4], 3, [4]),
        ([2, 4], 1, [2]),
        ([2, 4], 3, [4]),
        ([2], 5, [2, 2, 2]),
        ([1, 4], 9, [4, 4, 1]),
    ],
)
def test_batches_are_padded_or_split_to_the_sizes_that_are_ready(
    ready: list[int], rows: int, called: list[int]
) -> None:
    sizes: list[int] = []
    calls = PlannedCalls(make, lambda part: None)
    for size in ready:
        calls.use(make(batch(size)), compiled(sizes, size))
    inputs = batch(rows)
    for got, wanted in zip(calls(inputs), Affine()(*inputs.values()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert sizes == called


def test_each_size_is_wanted_once_and_again_when_plans_no_longer_hold() -> None:
    wanted: list[int] = []
    calls = PlannedCalls(make, lambda part: wanted.append(len(part.inputs["x"])))
    for rows in (1, 2, 1, 2):
        calls(batch(rows))
    assert wanted == [1, 2]
    calls.use(make(batch(2)), compiled([], 2))
    calls(batch(2))
    assert wanted == [1, 2]
    calls.use_plain()
    calls(batch(2))
    assert wanted == [1, 2, 2]
