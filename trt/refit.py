"""Owns changing the weights of a loaded plan. Independent of where the weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .errors import PlanError
from .library import Library
from .tensors import torch_dtype


def refit(library: Library, engine: Any, constants: Mapping[str, torch.Tensor], stream: int) -> None:
    """Replace constants of a loaded plan, in the order of work on a CUDA stream; contexts and addresses stay valid.

    constants: by their names in the graph, contiguous, on the CPU or the card; they must not change until the stream
    has done the work. Raises PlanError if the plan does not take them: it may then have some of the new ones.
    """
    api = library.api
    library.messages.take()
    refitter = api.Refitter(engine, library.logger)
    for name, tensor in constants.items():
        prototype = refitter.get_weights_prototype(name)
        if prototype.size != tensor.numel() or torch_dtype(prototype.dtype) is not tensor.dtype:
            raise _refused(library, f"{name} is {tuple(tensor.shape)} {tensor.dtype}")
        # from a pointer: a numpy array has no bfloat16, and would be taken for another dtype
        weights = api.Weights(prototype.dtype, tensor.data_ptr(), tensor.numel())
        location = api.TensorLocation.DEVICE if tensor.is_cuda else api.TensorLocation.HOST
        if not refitter.set_named_weights(name, weights, location):
            raise _refused(library, f"{name} was rejected")
    if missing := refitter.get_missing_weights():
        raise _refused(library, f"{', '.join(missing)} must be given too")
    if not refitter.refit_cuda_engine_async(stream):
        raise _refused(library, "the refit failed")


def _refused(library: Library, what: str) -> PlanError:
    causes = library.messages.take()
    return PlanError(
        f"The weights of the plan cannot be changed: {causes[0] if causes else what}.",
        "Build the plan again with the new weights: `zoetrope plans build`.",
    )
