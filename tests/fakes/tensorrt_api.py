"""A stand-in for TensorRT's Python module and for CUDA streams: one plan, y = x @ w + b, computed in host memory at the
addresses that the runner gave, so that a wrong address, dtype or order shows in the values."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from types import SimpleNamespace
from typing import Any

import torch

from trt.library import FLAVOURS, Library
from trt.messages import Messages

WEIGHTS = {"w": torch.tensor([[2.0, 0.0], [0.0, 3.0]]), "b": torch.tensor([1.0, 1.0])}
BATCH = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    FP4 = 9


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Validity(Enum):
    VALID = 0
    INVALID = 2


class Diagnostics(IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


@dataclass
class Card:
    """What tests set, and what they read afterwards. log: (what, CUDA stream's handle)."""

    validity: tuple[Validity, int] = (Validity.VALID, 0)
    loads: bool = True
    runs: bool = True
    capturable: bool = True
    rejected: str = ""
    needs_too: tuple[str, ...] = ()
    output: DataType = DataType.FLOAT
    log: list[tuple[str, int]] = field(default_factory=list)
    graph: list[Callable[[], None]] | None = None  # of the capture under way
    being_captured_by_caller: int | None = None
    kernels: bytes = b"kernels"
    kernels_loaded: bytes = b""


@dataclass
class Weights:
    dtype: DataType
    address: int
    size: int


class Engine:
    num_io_tensors = 2

    def __init__(self, card: Card) -> None:
        self.card, self.weights = card, {name: tensor.clone() for name, tensor in WEIGHTS.items()}

    def get_tensor_name(self, index: int) -> str:
        return ("out_y", "in_x")[index]  # not in the caller's order

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "in_x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (BATCH, 2)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT if name == "in_x" else self.card.output

    def create_runtime_config(self) -> Any:
        def deserialize(kernels: bytes) -> bool:
            self.card.kernels_loaded = kernels
            return True

        cache = SimpleNamespace(deserialize=deserialize, serialize=lambda: self.card.kernels)
        return SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda cache: None)

    def create_execution_context(self, config: Any = None) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.card = engine, engine.card
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.card.capturable

    def execute_async_v3(self, stream: int) -> bool:
        addresses = dict(self.addresses)
        if self.card.graph is not None:
            self.card.log.append(("captured", stream))
            self.card.graph.append(lambda: self._compute(addresses))
        else:
            self.card.log.append(("run", stream))
            self._compute(addresses)
        return self.card.runs

    def _compute(self, addresses: dict[str, int]) -> None:
        x, y = (memory_at(addresses[name], (BATCH, 2)) for name in ("in_x", "out_y"))
        y.copy_(x @ self.engine.weights["w"] + self.engine.weights["b"])


class Refitter:
    def __init__(self, engine: Engine, logger: Any) -> None:
        self._engine, self._new = engine, dict[str, torch.Tensor]()

    def get_weights_prototype(self, name: str) -> Weights:
        return Weights(DataType.FLOAT, 0, self._engine.weights[name].numel())

    def set_named_weights(self, name: str, weights: Weights, location: str) -> bool:
        assert location == "host"
        self._new[name] = memory_at(weights.address, tuple(self._engine.weights[name].shape))
        return name != self._engine.card.rejected

    def get_missing_weights(self) -> list[str]:
        return [name for name in self._engine.card.needs_too if self._new and name not in self._new]

    def refit_cuda_engine_async(self, stream: int) -> bool:
        self._engine.card.log.append(("refit", stream))
        self._engine.weights.update({name: tensor.clone() for name, tensor in self._new.items()})
        return True


class FakeStreams:
    """CUDA streams that do the work at once. Handles: 7 for runs, 9 for captures."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def capturing(self) -> int | None:
        return self._card.being_captured_by_caller

    def run(self, enqueue: Callable[[int], None]) -> None:
        enqueue(7)

    def allows(self, question: Callable[[int], bool]) -> bool:
        return question(9)

    def capture(self, enqueue: Callable[[int], None]) -> Callable[[], None]:
        graph: list[Callable[[], None]] = []
        self._card.graph = graph
        enqueue(9)
        self._card.graph = None

        def replay() -> None:
            self._card.log.append(("replay", 0))
            for work in graph:
                work()

        return replay


def fake_library(card: Card, name: str = "tensorrt-rtx") -> Library:
    """Return the library whose plans all are the one of `WEIGHTS`."""
    runtime = SimpleNamespace(
        get_engine_validity=lambda plan: card.validity,
        deserialize_cuda_engine=lambda plan: Engine(card) if card.loads else None,
    )
    api = SimpleNamespace(
        Runtime=lambda logger: runtime,
        TensorIOMode=Mode,
        DataType=DataType,
        EngineValidity=Validity,
        EngineInvalidityDiagnostics=Diagnostics,
        Refitter=Refitter,
        Weights=Weights,
        TensorLocation=SimpleNamespace(HOST="host", DEVICE="device"),
    )
    return Library(flavour=FLAVOURS[name], api=api, version="1.7", logger=None, messages=Messages())


def memory_at(address: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The float32 tensor at an address, not a copy."""
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32).view(shape)


def aligned(values: torch.Tensor) -> torch.Tensor:
    """A copy at an address that TensorRT takes."""
    room = torch.empty(values.numel() + 64)
    start = next(index for index in range(64) if room[index:].data_ptr() % 256 == 0)
    return room[start : start + values.numel()].view(values.shape).copy_(values)
