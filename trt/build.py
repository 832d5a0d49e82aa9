"""Owns the build of a plan: an exported graph becomes a TensorRT file at fixed shapes, and a description of it.

One code for TensorRT and TensorRT-RTX. Networks are strongly typed: the plan computes in the dtypes of the graph.
Independent of models, and of where plans are kept.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import PlanError
from .export import Exported
from .library import Library
from .messages import plain
from .progress import Report, make_monitor
from .weights import WeightSource

PLAN_FILE, DESCRIPTION_FILE = "plan.engine", "plan-description.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a plan is built; all of it determines the file.

    level: TensorRT's builder_optimization_level, 0 to 5. refit: whether weights can be changed in the loaded plan;
    such a build needs a card. turing: build for compute capability 7.5 instead of 8.0 and newer (TensorRT-RTX).
    """

    level: int = 3
    refit: bool = False
    turing: bool = False

    def __str__(self) -> str:
        return f"level {self.level}" + ", refit" * self.refit + ", 7.5" * self.turing


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDescription:
    """What a runner must know of a plan. inputs, outputs: names in the plan, in order. refit: whether `sources` can be
    changed. check: how the exported graph was checked, and the result.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    refit: bool
    sources: Mapping[str, WeightSource]
    library: str
    check: str

    def write(self, folder: Path) -> None:
        """Write it beside the plan."""
        record = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "refit": self.refit,
            "sources": {name: source.as_json() for name, source in self.sources.items()},
            "library": self.library,
            "check": self.check,
        }
        (folder / DESCRIPTION_FILE).write_text(json.dumps(record))

    @classmethod
    def read(cls, folder: Path) -> PlanDescription:
        """Read what `write` wrote. Raises PlanError."""
        try:
            record = json.loads((folder / DESCRIPTION_FILE).read_text())
            return cls(
                inputs=tuple(record["inputs"]),
                outputs=tuple(record["outputs"]),
                refit=bool(record["refit"]),
                sources={name: WeightSource.from_json(entry) for name, entry in record["sources"].items()},
                library=str(record["library"]),
                check=str(record["check"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"The description of the plan in {folder} cannot be read: {error}.", _AGAIN) from error


_AGAIN = "Run `zoetrope plans verify`, then build it again."


def build_plan(
    library: Library,
    exported: Exported,
    folder: Path,
    *,
    options: BuildOptions,
    check: str,
    report: Report,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Build a plan of an exported graph into `folder`. check: the result of the check, for the description.

    report: receives progress, as "Compiling engine graph: 40%". cancelled: asked at every step of the build.
    Raises PlanError with TensorRT's own cause.
    """
    api = library.api
    library.messages.take()
    builder = api.Builder(library.logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    parser = api.OnnxParser(network, library.logger)
    if not parser.parse_from_file(str(exported.file)):
        causes = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise _failure(library, "cannot read the exported graph", causes or library.messages.take())
    _let_attention_decompose(api, network)
    _configure(library, builder, network, config, options)
    stop = threading.Event()
    config.progress_monitor = make_monitor(api, report, lambda: stop.is_set() or cancelled())
    plan = _interruptible(lambda: builder.build_serialized_network(network, config), stop)
    if cancelled():
        raise PlanError("The build was interrupted.")
    if plan is None:
        raise _failure(library, "cannot build the plan", library.messages.take())
    with (folder / PLAN_FILE).open("wb") as stream:
        stream.write(memoryview(plan))
    PlanDescription(
        inputs=exported.inputs,
        outputs=exported.outputs,
        refit=options.refit,
        sources=exported.sources if options.refit else {},
        library=f"{library.flavour.name} {library.version}",
        check=check,
    ).write(folder)


def _interruptible(work: Callable[[], Any], stop: threading.Event) -> Any:
    """Do the work in a thread, so that the user's Ctrl+C is noticed here; then tell it to stop, and wait for it.

    A KeyboardInterrupt within the library's call of a monitor would end the process.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:  # the user's interrupt above all
            stop.set()
            raise


def _let_attention_decompose(api: Any, network: Any) -> None:
    """Let TensorRT compute attention by several kernels where it has no single one: float32, rare head sizes."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == api.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = api.IAttentionOutputLayer  # the network gives layers as their base class
            layer.attention.decomposable = True


def _configure(library: Library, builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    """Set the flags, and a profile that fixes every input's shape at that of the graph."""
    api = library.api
    config.builder_optimization_level = options.level
    if options.refit:
        config.set_flag(api.BuilderFlag.REFIT)
    if options.turing:
        config.num_compute_capabilities = 1
        config.set_compute_capability(api.ComputeCapability.SM75, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        assert min(shape, default=1) >= 0, f"{tensor.name} has a dynamic shape: {shape}"
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)


def _failure(library: Library, what: str, causes: list[str]) -> PlanError:
    """Return the error with the first cause, and the remedy for those that are known."""
    cause = plain(causes[0]) if causes else "it gives no cause"
    remedy = next((text for pattern, text in _REMEDIES.items() if re.search(pattern, " ".join(causes))), "")
    return PlanError(f"{library.flavour.name} {what}: {cause}.", remedy or "Use another backend, and report it.")


_REMEDIES: Mapping[str, str] = {
    r"(?i)sm75": "Cards of compute capability 7.5 compute in float16 only: use another backend for this model.",
    r"CUDA driver version is insufficient|CUDA_SUCCESS": (
        "A plan whose weights can be changed is built on a machine with the card: build it there, or without refit."
    ),
    r"(?i)out ?of ?memory|bad_alloc": "Close other programs that use memory, or build at a smaller size.",
}
