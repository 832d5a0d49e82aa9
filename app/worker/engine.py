"""How a worker opens its engine, and what it says of it. Independent of the pipe.

torch is imported only for kinds of models that use it: the others start at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.core.contracts import Engine
from pipelines.files.loader_options import LoaderOptions
from pipelines.kinds import LoadContext, kind_of

from .messages import WorkerReady


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker opens. engine: what is chosen of it, see pipelines.load.load_engine.

    threads: CPU threads of the tensor library; 0 leaves its own choice (the physical cores).
    """

    model: str
    engine: LoaderOptions = field(default_factory=LoaderOptions)
    threads: int = 0


OpenEngine = Callable[[WorkerOptions, Callable[[str], None]], tuple[Engine, int]]
"""The engine that the options name and the number of CPU threads it uses; gets a way to tell the user something."""


def open_engine(options: WorkerOptions, notice: Callable[[str], None]) -> tuple[Engine, int]:
    """The engine that `options` names and the number of CPU threads it uses. notice: gets sentences for the user."""
    kind = kind_of(options.model)
    threads = kind.use_threads(options.threads)
    return kind.load(options.model, options.engine, LoadContext(notice=notice)), threads


def describe(engine: Engine, threads: int) -> WorkerReady:
    """What a fresh stream of `engine` is and how its controls stand."""
    with engine.open() as probe:
        return WorkerReady(info=probe.info, controls=dict(probe.controls.values), threads=threads)
