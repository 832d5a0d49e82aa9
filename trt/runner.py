"""Owns running a plan on a card, in the order of the current CUDA stream, captured in graphs where that helps.

One code for TensorRT and TensorRT-RTX. Independent of models and of where plans are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .build import PLAN_FILE, PlanDescription
from .errors import PlanError
from .library import Library
from .messages import plain
from .refit import refit
from .runtime_cache import RuntimeCache
from .streams import Action, GraphChoice, Streams
from .tensors import PlanTensor, can_bind, check_inputs, read_tensors
from .weights import changed_constants


class PlanRunner:
    """A loaded plan: takes the inputs in order and returns the outputs, which stay valid until the next call.

    Inputs are read where they are if TensorRT can, else copied into a buffer. A call allocates nothing and does not
    synchronise, except the first with an address or two, which also capture.
    """

    def __init__(self, library: Library, folder: Path, streams: Streams, device: torch.device) -> None:
        """Load the plan in a folder. Raises PlanError with the cause, and what to do, if it cannot run here."""
        self._library, self._streams, self._device = library, streams, device
        self.description = PlanDescription.read(folder)
        self._runtime = library.api.Runtime(library.logger)
        plan = (folder / PLAN_FILE).read_bytes()
        if library.flavour.jit:
            _check_validity(library, self._runtime, plan)
        self._engine = self._loaded(self._runtime.deserialize_cuda_engine(plan), "be loaded")
        self.inputs = read_tensors(library.api, self._engine, self.description.inputs, inputs=True)
        self.outputs = read_tensors(library.api, self._engine, self.description.outputs, inputs=False)
        self._cache = RuntimeCache(folder.parent / "runtime", device) if library.flavour.jit else None
        self._context = self._loaded(self._make_context(), "be prepared to run")
        self._buffers = [_empty(tensor, device) for tensor in self.outputs]
        self._staged: dict[int, torch.Tensor] = {}
        self._choice = GraphChoice()
        self._replays: dict[tuple[int, ...], Callable[[], None]] = {}
        self._refitted: set[str] = set()
        self._held: Mapping[str, torch.Tensor] = {}

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the plan. Raises PlanError for inputs of another shape or dtype, and if TensorRT fails."""
        check_inputs(self.inputs, inputs)
        bound = [tensor if can_bind(tensor) else self._stage(index, tensor) for index, tensor in enumerate(inputs)]
        addresses = tuple(tensor.data_ptr() for tensor in bound)
        if (stream := self._streams.capturing()) is not None:
            self._bind(addresses)
            self._enqueue(stream)
            return tuple(self._buffers)
        action = self._choice.choose(addresses)
        if action is Action.CAPTURE and not self._capturable():
            action = Action.RUN
        if action is Action.CAPTURE:
            self._bind(addresses)
            self._replays[addresses] = self._streams.capture(self._enqueue)
        if replay := self._replays.get(addresses):
            replay()
        else:
            self._bind(addresses)
            self._streams.run(self._enqueue)
        return tuple(self._buffers)

    def save_runtime_cache(self) -> None:
        """Keep the kernels that were compiled while the plan ran, so that the next start need not compile them."""
        if self._cache is not None:
            self._cache.save()

    def update(self, weights: Mapping[str, torch.Tensor]) -> int:
        """Make the plan compute with these weights, the module's by name. Returns how many constants have changed.

        Raises PlanError if the plan was built for one set of weights.
        """
        sources = self.description.sources
        if not self.description.refit:
            raise PlanError(
                "The plan contains its weights, and cannot take others.", "Build it again with the new weights."
            )
        self._refitted |= changed_constants(sources, weights).keys()  # those changed before may change back
        constants = {name: sources[name].constant(weights[sources[name].parameter]) for name in self._refitted}
        if constants:
            self._streams.run(lambda stream: refit(self._library, self._engine, constants, stream))
            self._held = constants  # read until the stream has done the work
            self._choice.forget()
            self._replays.clear()
        return len(constants)

    def _capturable(self) -> bool:
        """Whether TensorRT-RTX has compiled all that it needs, so that a call can be captured."""
        return not self._library.flavour.jit or self._streams.allows(self._context.is_stream_capturable)

    def _stage(self, index: int, tensor: torch.Tensor) -> torch.Tensor:
        if index not in self._staged:
            self._staged[index] = _empty(self.inputs[index], self._device)
        return self._staged[index].copy_(tensor)

    def _bind(self, addresses: tuple[int, ...]) -> None:
        outputs = ((tensor, buffer.data_ptr()) for tensor, buffer in zip(self.outputs, self._buffers, strict=True))
        for tensor, address in (*zip(self.inputs, addresses, strict=True), *outputs):
            if not self._context.set_tensor_address(tensor.name, address):
                raise self._failure(f"rejects the address of {tensor.name}")

    def _enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._failure("failed")

    def _failure(self, what: str) -> PlanError:
        causes = [plain(text) for text in self._library.messages.take()]
        return PlanError(f"The plan {what}: {causes[0] if causes else 'TensorRT gives no cause'}.", "Build it again.")

    def _make_context(self) -> Any:
        if self._cache is None:
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        self._cache.attach(config)
        return self._engine.create_execution_context(config)

    def _loaded(self, result: Any, what: str) -> Any:
        if result is None:
            raise self._failure(f"cannot {what} here")
        return result


def _check_validity(library: Library, runtime: Any, plan: bytes) -> None:
    """Raise PlanError, with the remedy, if the plan cannot run on this machine's card, driver and library."""
    library.messages.take()
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != library.api.EngineValidity.INVALID:
        return
    kinds = library.api.EngineInvalidityDiagnostics
    for name, (cause, remedy) in _INVALID.items():
        if int(diagnostics) & int(getattr(kinds, name)):
            raise PlanError(f"The plan cannot run here: {cause}.", remedy)
    causes = [plain(text) for text in library.messages.take()]
    raise PlanError(
        f"The plan cannot run here: {causes[0] if causes else 'TensorRT gives no cause'}.",
        "`zoetrope doctor` shows the card and the driver.",
    )


_INVALID: Mapping[str, tuple[str, str]] = {
    "MALFORMED_ENGINE": ("its file is damaged", "Run `zoetrope plans verify`, then build it again."),
    "VERSION_MISMATCH": ("another version of the library built it", "Build it again."),
    "UNSUPPORTED_CC": ("it is not for this card's compute capability", "Build it again on this machine."),
    "OLD_CUDA_DRIVER": ("the driver is too old", "Install a newer NVIDIA driver."),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old", "Install a newer PyTorch with CUDA."),
    "INSUFFICIENT_GPU_MEMORY": ("the card has too little memory", "Use a smaller size, or close other programs."),
    "CUDA_ERROR": ("CUDA failed", "`zoetrope doctor` shows the card and the driver."),
}


def _empty(tensor: PlanTensor, device: torch.device) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
