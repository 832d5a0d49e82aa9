"""Owns calls of a part that use its compiled forms as they become available, and the plain network until then.

A batch smaller than a compiled one is padded, a larger one is split. Independent of recipes, models and engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from pipelines.core.parts import Part, PartCall, Tensors

from .threads import torch_threads

Signature: TypeAlias = tuple[object, ...]
MakePart = Callable[[dict[str, torch.Tensor]], Part]
Want = Callable[[Part], None]


class PlannedCalls:
    """Calls of one part of a model, whose inputs and outputs all have the batch as their first axis."""

    def __init__(self, make_part: MakePart, want: Want, *, plain_threads: int = 0) -> None:
        """make_part: the part at the shapes of given inputs. want: called once for each new set of shapes.
        plain_threads: that the plain network runs with; 0: the caller's.
        """
        self._make_part, self._want, self._plain_threads = make_part, want, plain_threads
        self._parts: dict[Signature, Part] = {}
        self._ready: dict[Signature, dict[int, PartCall]] = {}  # by shapes without the batch; by its size

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Return the outputs for inputs by name, [N, ...] each; valid until the next call."""
        tensors = tuple(inputs.values())
        calls = self._ready.get(_without_batch(tensors))
        if calls is None or tensors[0].shape[0] not in calls:
            self._note(dict(inputs))
        if not calls:
            with torch_threads(self._plain_threads or torch.get_num_threads()):
                return self._plain(inputs)(*tensors)
        return _in_batches(calls, tensors)

    def part(self, inputs: dict[str, torch.Tensor]) -> Part:
        """See `pipelines.backends.forms.PartUser`."""
        return self._make_part(inputs)

    def use(self, part: Part, call: PartCall) -> None:
        """Use a compiled form at its part's shapes from now on."""
        tensors = tuple(part.inputs.values())
        self._ready.setdefault(_without_batch(tensors), {})[tensors[0].shape[0]] = call

    def use_plain(self) -> None:
        """Use the plain network again, and want compiled forms anew."""
        self._ready.clear()
        self._parts.clear()

    def missing(self, batch: int) -> Part | None:
        """Return a part with this size of batch that has been called and has no compiled form of that size."""
        for part in self._parts.values():
            tensors = tuple(part.inputs.values())
            if len(tensors[0]) == batch and batch not in self._ready.get(_without_batch(tensors), {}):
                return part
        return None

    def _note(self, inputs: dict[str, torch.Tensor]) -> None:
        signature = _signature(tuple(inputs.values()))
        if signature not in self._parts:
            like = {name: like_strided(tensor) for name, tensor in inputs.items()}
            part = self._parts[signature] = self._make_part(like)
            self._want(part)

    def _plain(self, inputs: Mapping[str, torch.Tensor]) -> PartCall:
        return self._parts[_signature(tuple(inputs.values()))].module


def _in_batches(calls: Mapping[int, PartCall], tensors: Tensors) -> Tensors:
    """Run a batch in as few compiled batches as there are; the last one is padded with copies of its last row."""
    count, results = tensors[0].shape[0], []
    start = 0
    while start < count:
        left = count - start
        size = min((size for size in calls if size >= left), default=max(calls))
        taken = min(size, left)
        given = tuple(_padded(tensor[start : start + taken], size) for tensor in tensors)
        outputs = calls[size](*given)
        if taken == count:
            return tuple(output[:taken] for output in outputs)
        results.append(tuple(output[:taken].clone() for output in outputs))
        start += taken
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def _padded(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Return `size` rows with the strides of the tensor, whose rows are dense."""
    count = tensor.shape[0]
    if count == size:
        return tensor
    strides = (tensor[0].numel(), *tensor.stride()[1:])
    padded = torch.empty_strided((size, *tensor.shape[1:]), strides, dtype=tensor.dtype, device=tensor.device)
    padded[:count], padded[count:] = tensor, tensor[-1:]
    return padded


def like_strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return zeros of the same shape, dtype, device and strides, also for use outside of inference mode."""
    with torch.inference_mode(False):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).zero_()


def _signature(tensors: Tensors) -> Signature:
    return (tensors[0].shape[0], *_without_batch(tensors))


def _without_batch(tensors: Tensors) -> Signature:
    """Shapes, dtypes and strides; the stride of an axis of length 1 does not matter."""
    return tuple(
        (tuple(t.shape[1:]), t.dtype, tuple(s for s, n in zip(t.stride()[1:], t.shape[1:], strict=True) if n > 1))
        for t in tensors
    )
