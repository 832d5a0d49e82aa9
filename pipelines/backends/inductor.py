"""Owns the recipe that compiles parts with torch.compile's compiler, Inductor, ahead of time.

A plan holds code only: the model's parameters are inputs, so LoRAs that are merged in place act at once, and models of
one architecture share plans. Loading traces nothing. Independent of engines and of CUDA graphs, which may capture it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from pipelines.core.parts import Part, PartCall, Tensors
from pipelines.files.precision import cpu_flags

_CODE, _NAMES = "part.bin", "parameters.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InductorRecipe:
    """Compiles a part with Inductor. See `Recipe`."""

    name: str = "inductor"
    title: str = "torch.compile"
    steps: int = 2
    samples: int = 0
    bakes_weights: bool = False
    loads_at_once: bool = False

    def open_axes(self, part: Part) -> Mapping[str, int]:
        """See `Recipe`: none."""
        return {}

    def key(self, part: Part) -> Mapping[str, str]:
        """The library, the device, and shapes, dtypes and layouts of the parameters, in order."""
        layouts = [(name, str(t.dtype), tuple(t.shape), t.stride()) for name, t in _state(part).items()]
        device = next(iter(part.inputs.values())).device
        return {
            "libraries": f"torch {torch.__version__}",
            "device": _device(device),
            "strides": str(part.layouts),
            "architecture": hashlib.sha256(repr((str(part.module), layouts)).encode()).hexdigest()[:16],
        }

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """Export the part and compile it. Raises ModelError if it cannot be compiled here."""
        from torch._inductor import standalone_compile

        state, inputs = _state(part), list(part.inputs.values())
        try:
            with torch.no_grad():
                progress(f"exporting {part.name}")
                program = torch.export.export(part.module, tuple(inputs), strict=False)
                targets = [spec.target for spec in program.graph_signature.input_specs]
                names = [target for target in targets if target is not None]
                progress(f"compiling {part.name}")
                compiled = standalone_compile(
                    program.graph_module,
                    [*(state[name] for name in names), *inputs],
                    dynamic_shapes="from_example_inputs",
                    aot=True,
                )
                compiled.save(path=str(folder / _CODE), format="binary")
        except Exception as error:  # the compiler raises anything
            raise ModelError(
                f"{part.name} cannot be compiled: {type(error).__name__}: {error}",
                "Install a C compiler (and Triton, on a GPU), or use the backend eager.",
            ) from error
        (folder / _NAMES).write_text(json.dumps(names))

    def load(self, part: Part, folder: Path) -> PartCall:
        """Load a plan over the part's own parameters, and call it once. Raises ModelError if that fails."""
        from torch._inductor.standalone_compile import CompiledArtifact

        try:
            compiled: Any = CompiledArtifact.load(path=str(folder / _CODE), format="binary")
            state = _state(part)
            parameters = [state[name] for name in json.loads((folder / _NAMES).read_text())]
            call = _bound(compiled, parameters)
            with torch.no_grad():
                call(*part.inputs.values())
        except Exception as error:  # of another version, or damaged: the loader raises anything
            raise ModelError(
                f"The compiled {part.name} cannot be loaded: {type(error).__name__}: {error}",
                "Remove it with `zoetrope plans prune`; it is made anew.",
            ) from error
        return call


def _bound(compiled: Any, parameters: Sequence[torch.Tensor]) -> PartCall:
    def call(*inputs: torch.Tensor) -> Tensors:
        return tuple(compiled(*parameters, *inputs))

    return call


def _state(part: Part) -> dict[str, torch.Tensor]:
    return {**dict(part.module.named_parameters()), **dict(part.module.named_buffers())}


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    return f"{device.type} {' '.join(cpu_flags())}"
