"""Owns the recipe that compiles parts with torch.compile's compiler, Inductor, ahead of time.

A plan holds code only: the model's parameters are inputs, so LoRAs that are merged in place act at once, and models of
one architecture share plans. Loading traces nothing. On CPUs a plan has the compiled kernels too, since Inductor keeps
them in a cache that nobody checks, and would compile them again elsewhere. Independent of engines and of CUDA graphs,
which may capture it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from pipelines.core.parts import Part, PartCall, Tensors
from pipelines.files.precision import cpu_flags

logger = logging.getLogger(__name__)
_CODE, _NAMES, _KERNELS = "part.bin", "parameters.json", "kernels"
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


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
            "kernels": "in the plan" if device.type == "cpu" else "in PyTorch's cache",
            "architecture": hashlib.sha256(repr((str(part.module), layouts)).encode()).hexdigest()[:16],
        }

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """Export the part and compile it. Raises ModelError if it cannot be compiled here."""
        try:
            if not _on_cpu(part):
                _compile(part, folder, progress)
                return
            with _own_cache() as cache:
                _compile(part, folder, progress)
                shutil.copytree(cache, folder / _KERNELS, ignore=shutil.ignore_patterns("*.lock", "locks"))
        except Exception as error:  # the compiler raises anything
            raise ModelError(
                f"{part.name} cannot be compiled: {_cause(error)}.",
                "Install a C compiler (and Triton, on a GPU), or use the backend eager.",
            ) from error

    def load(self, part: Part, folder: Path) -> PartCall:
        """Load a plan over the part's own parameters, and call it once. Raises ModelError if that fails.

        On CUDA kernels go through PyTorch's compile cache; if that is damaged, an empty one takes its place.
        """
        try:
            if not _on_cpu(part):
                try:
                    return _loaded(part, folder)
                except Exception as error:  # noqa: BLE001  # the loader raises anything; what remains is said below
                    logger.warning("loading %s again, without PyTorch's compile cache: %s", part.name, error)
            with _own_cache() as cache:
                if _on_cpu(part):
                    shutil.copytree(folder / _KERNELS, cache, dirs_exist_ok=True)
                return _loaded(part, folder)
        except Exception as error:  # of another version, without a compiler: the loader raises anything
            raise ModelError(
                f"The compiled {part.name} cannot be loaded: {_cause(error)}.",
                "Install a C compiler, or use the backend eager.",
            ) from error

    def update(self, part: Part, call: PartCall) -> None:
        """See `Recipe`: a call reads the part's own parameters, which have changed in place."""


def _compile(part: Part, folder: Path, progress: Notify) -> None:
    from torch._inductor import standalone_compile

    state, inputs = _state(part), list(part.inputs.values())
    with torch.no_grad():
        progress(f"{part.name}: exporting")
        program = torch.export.export(part.module, tuple(inputs), strict=False)
        targets = [spec.target for spec in program.graph_signature.input_specs]
        names = [target for target in targets if target is not None]
        progress(f"{part.name}: compiling")
        compiled = standalone_compile(
            program.graph_module,
            [*(state[name] for name in names), *inputs],
            dynamic_shapes="from_example_inputs",
            aot=True,
        )
        compiled.save(path=str(folder / _CODE), format="binary")
    (folder / _NAMES).write_text(json.dumps(names))


def _loaded(part: Part, folder: Path) -> PartCall:
    from torch._inductor.standalone_compile import CompiledArtifact

    with torch.no_grad():
        compiled: Any = CompiledArtifact.load(path=str(folder / _CODE), format="binary")
        state = _state(part)
        call = _bound(compiled, [state[name] for name in json.loads((folder / _NAMES).read_text())])
        call(*part.inputs.values())
    return call


def _cause(error: Exception) -> str:
    """The type and the first line, since compilers say pages."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}".rstrip(" .:")


def _bound(compiled: Any, parameters: Sequence[torch.Tensor]) -> PartCall:
    def call(*inputs: torch.Tensor) -> Tensors:
        return tuple(compiled(*parameters, *inputs))

    return call


@contextmanager
def _own_cache() -> Iterator[Path]:
    """Let Inductor keep its files in a folder of this process, empty at first, and yield that folder."""
    before = os.environ.get(_CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="zoetrope-", ignore_cleanup_errors=True) as cache:
        os.environ[_CACHE_VARIABLE] = cache
        try:
            yield Path(cache)
        finally:
            if before is None:
                del os.environ[_CACHE_VARIABLE]
            else:
                os.environ[_CACHE_VARIABLE] = before


def _on_cpu(part: Part) -> bool:
    return next(iter(part.inputs.values())).device.type == "cpu"


def _state(part: Part) -> dict[str, torch.Tensor]:
    return {**dict(part.module.named_parameters()), **dict(part.module.named_buffers())}


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    return f"{device.type} {' '.join(cpu_flags())}"
