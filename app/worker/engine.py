"""How a worker opens its engine, and what it says of it. Knows no pipe.

torch is imported for real models only: the identity engine starts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.core.contracts import Engine
from pipelines.identity import IdentityEngine

from .messages import WorkerReady


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker opens. engine: keyword arguments of pipelines.load.load_engine besides `model`.

    threads: CPU threads of the tensor library; 0 leaves its own choice (the physical cores).
    """

    model: str
    engine: dict[str, object] = field(default_factory=dict)
    threads: int = 0


OpenEngine = Callable[[WorkerOptions, Callable[[str], None]], tuple[Engine, int]]
"""The engine that the options name and the number of CPU threads it uses; gets a way to tell the user something."""


def open_engine(options: WorkerOptions, notice: Callable[[str], None]) -> tuple[Engine, int]:
    """The engine that `options` names and the number of CPU threads it uses. notice: gets sentences for the user."""
    if options.model == "identity":
        sizes: dict[str, int] = {
            name: int(str(options.engine[name])) for name in ("width", "height") if options.engine.get(name)
        }
        stages = options.engine.get("stages", ())
        assert isinstance(stages, tuple | list)
        return IdentityEngine(**sizes, stages=stages), 1
    import torch  # only the worker, and only for a real model

    from pipelines.load import load_engine

    if options.threads:
        torch.set_num_threads(options.threads)
    loader: Callable[..., Engine] = load_engine
    return loader(options.model, **options.engine, notice=notice), torch.get_num_threads()


def describe(engine: Engine, threads: int) -> WorkerReady:
    """What a fresh stream of `engine` is and how its controls stand."""
    with engine.open() as probe:
        return WorkerReady(info=probe.info, controls=dict(probe.controls.values), threads=threads)
