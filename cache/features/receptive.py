"""Owns what a receptive field is: which inputs each output of a convolutional network depends on, along one axis.

Independent of how it was found (cache/features/reach.py walks a network's operations, perturbation.py changes its
inputs) and of what the inputs are. Masks are NumPy arrays on the host: nothing here touches a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbounded:
    """Some output depends on all inputs. because: the operation that makes it so."""

    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptiveField:
    """Which inputs an output depends on, along each spatial axis alike.

    Both sides are divided into cells: `inputs` input elements and `outputs` output elements each, without a common
    factor (an encoder that halves three times: 8 and 1; its decoder: 1 and 8). first, last: for each of the `outputs`
    elements of a cell, the first and the last input that it depends on, relative to the first input of its cell. At
    the border of the picture the field ends with the picture.
    """

    inputs: int
    outputs: int
    first: tuple[int, ...]
    last: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.first) == len(self.last) == self.outputs
        assert all(low <= high for low, high in zip(self.first, self.last, strict=True))

    @property
    def before(self) -> int:
        """How many inputs before its cell's own ones an output depends on, at most."""
        return max(0, -min(self.first))

    @property
    def after(self) -> int:
        """How many inputs after its cell's own ones an output depends on, at most."""
        return max(0, max(self.last) - (self.inputs - 1))

    @property
    def margin_cells(self) -> int:
        """The halo on each side that makes a window's result exact, in whole cells."""
        return math.ceil(max(self.before, self.after) / self.inputs)


def affected(changed: npt.NDArray[np.bool_], field: ReceptiveField) -> npt.NDArray[np.bool_]:
    """Return which outputs can change when these inputs do: [H, W] -> [H / inputs * outputs, W / inputs * outputs].

    All others keep their values. H and W are multiples of `field.inputs`. For an encoder, changed pixels -> latents;
    for a decoder, changed latents -> pixels: each is a dilation by the receptive field.
    """
    assert changed.ndim == 2
    return _along_rows(_along_rows(changed, field).T, field).T


def _along_rows(changed: npt.NDArray[np.bool_], field: ReceptiveField) -> npt.NDArray[np.bool_]:
    """`affected` along the first axis: an output changes if any input from its first to its last one does."""
    cells, rest = divmod(changed.shape[0], field.inputs)
    assert not rest, f"{changed.shape[0]} is not a multiple of {field.inputs}"
    sums = np.zeros((changed.shape[0] + 1, changed.shape[1]), dtype=np.int32)
    np.cumsum(changed, axis=0, dtype=np.int32, out=sums[1:])
    starts = np.arange(cells)[:, None] * field.inputs
    low = np.clip(starts + np.array(field.first), 0, changed.shape[0]).ravel()
    high = np.clip(starts + np.array(field.last) + 1, 0, changed.shape[0]).ravel()
    result: npt.NDArray[np.bool_] = sums[high] > sums[low]
    return result


def field_of(first: npt.NDArray[np.int64], last: npt.NDArray[np.int64], size: int) -> ReceptiveField:
    """Return the field of outputs [n] that depend on inputs first..last of an axis of `size` inputs.

    Where the axis is too short for the field, or ends cut it, the largest reach over all cells counts.
    """
    common = math.gcd(size, len(first))
    inputs, outputs = size // common, len(first) // common
    starts = np.arange(common)[:, None] * inputs
    low = (first.reshape(common, outputs) - starts).min(axis=0)
    high = (last.reshape(common, outputs) - starts).max(axis=0)
    return ReceptiveField(
        inputs=inputs, outputs=outputs, first=tuple(int(x) for x in low), last=tuple(int(x) for x in high)
    )
