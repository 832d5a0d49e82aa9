"""Owns the table of backends, and the choice of one by name or by "auto". Independent of engines.

The command line's help, `zoetrope doctor` and the docs derive from this table. To add a backend, write a `Backend` and
add its row; examples/add_a_backend.py is an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipelines.core.errors import ModelError

from .base import KINDS, Backend, BackendRefusal
from .fp8 import Fp8Backend
from .openvino.backend import OpenVINOBackend
from .pytorch import PyTorchBackend
from .tensorrt_backend import TensorRTBackend

if TYPE_CHECKING:
    import torch


def backend_table(*rows: Backend) -> Mapping[str, Backend]:
    """Return an immutable table by name; `backend_table(*BACKENDS.values(), mine)` has one backend more."""
    return MappingProxyType({row.name: row for row in rows})


BACKENDS = backend_table(
    PyTorchBackend(name="eager", purpose="networks run eagerly in PyTorch, on any device", preference=1),
    PyTorchBackend(name="cuda-graph", purpose="captured in CUDA graphs and replayed", preference=2, captured=True),
    PyTorchBackend(
        name="compiled",
        purpose="compiled with torch.compile and, on CUDA, captured in CUDA graphs; image models start eager",
        preference=3,
        compiled=True,
        captured=True,
    ),
    TensorRTBackend(name="tensorrt-rtx", purpose="TensorRT-RTX on GeForce and RTX cards, beside the stream"),
    TensorRTBackend(name="tensorrt", purpose="TensorRT 11 on NVIDIA cards, beside the stream"),
    OpenVINOBackend(
        name="openvino",
        purpose="OpenVINO on CPUs, in int8: the fastest there, at 38 dB of the exact pictures on average",
        preference=4,
        quantised=True,
    ),
    OpenVINOBackend(name="openvino-bf16", purpose="OpenVINO on CPUs, in bfloat16", quantised=False),
    Fp8Backend(
        name="fp8",
        purpose="compiled, with products and attention in 8-bit floats, Hopper or newer",
        attention=True,
    ),
    Fp8Backend(name="fp8-products", purpose="compiled, with products in 8-bit floats"),
)
"""All backends, by the name that a user gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """A backend and why it was chosen; `reason` is shown to the user."""

    backend: Backend
    reason: str

    @property
    def why(self) -> str:
        """The reason, without the name that it begins with."""
        return self.reason.removeprefix(self.backend.name).lstrip(": ")


def choose_backend(
    requested: str, kind: str, device: torch.device, backends: Mapping[str, Backend] = BACKENDS
) -> BackendChoice:
    """Return the backend of that name or, with "auto", the one of highest preference that can run. kind: of KINDS.

    Raises ModelError, with the remedy, for an unknown name and for a backend that cannot run this kind of model here.
    """
    assert kind in KINDS, kind
    if requested == "auto":
        return _automatic(kind, device, backends)
    backend = backends.get(requested)
    if backend is None:
        names = ", ".join(name for name, row in backends.items() if kind in row.kinds)
        raise ModelError(f"There is no backend named {requested!r}.", f"Use auto, {names}.")
    refusal = refusal_of(backend, kind, device)
    if refusal is None:
        return BackendChoice(backend=backend, reason=f"{requested} as requested")
    usable = [name for name, row in backends.items() if refusal_of(row, kind, device) is None]
    raise ModelError(refusal.message, refusal.remedy or f"Use {_either('auto', *usable)}.")


def refusal_of(backend: Backend, kind: str, device: torch.device) -> BackendRefusal | None:
    """Return why a backend cannot run a kind of model on a device; None if it can."""
    if kind not in backend.kinds:
        return BackendRefusal(
            because=f"{backend.name} does not run {kind} models",
            message=f"The backend {backend.name} does not run {kind} models.",
        )
    return backend.refusal(kind, device)


def backend_help(backends: Mapping[str, Backend] = BACKENDS) -> str:
    """Return the command line's help for --backend."""
    both = [name for name, row in backends.items() if row.kinds == KINDS]
    parts = [", ".join(("auto", *both))]
    for kind in KINDS:
        names = [name for name, row in backends.items() if row.kinds == (kind,)]
        parts += [f"{kind} models also {', '.join(names)}"] if names else []
    return f"{'; '.join(parts)} (default auto)"


def _automatic(kind: str, device: torch.device, backends: Mapping[str, Backend]) -> BackendChoice:
    """Choose by preference. The reason is why those of higher preference cannot run, each distinct one once."""
    rows = [row for row in backends.values() if kind in row.kinds and row.rank(kind, device)]
    refusals: dict[str, None] = {}
    for row in sorted(rows, key=lambda row: -row.rank(kind, device)):
        refusal = row.refusal(kind, device)
        if refusal is None:
            return BackendChoice(backend=row, reason=f"{row.name}: {'; '.join(refusals) or 'the fastest measured'}")
        refusals[refusal.because] = None
    raise ModelError(f"No backend runs {kind} models on {device}.", "Choose another --device.")


def _either(*names: str) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
