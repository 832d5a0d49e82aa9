"""How a worker opens its engine and describes it. Independent of the pipe.

torch is imported only for kinds of models that use it; the others start immediately.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.core.contracts import Engine
from pipelines.files.loader_options import LoaderOptions
from pipelines.kinds import LoadContext, chosen_backend, kind_of

from .messages import WorkerReady


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Which engine a worker opens. engine: how to load it, see pipelines.load.load_engine.

    threads: CPU threads of the tensor library; 0 keeps its default (the number of physical cores). beat_s: how often
    the worker says that it lives.
    """

    model: str
    engine: LoaderOptions = field(default_factory=LoaderOptions)
    threads: int = 0
    beat_s: float = 1.0


OpenEngine = Callable[[WorkerOptions, Callable[[str], None]], tuple[Engine, int]]
"""Takes options and a callback for messages to the user. Returns the engine and its number of CPU threads."""


def open_engine(options: WorkerOptions, notice: Callable[[str], None]) -> tuple[Engine, int]:
    """Load the engine that `options` names. notice: receives messages for the user.

    Returns the engine and the number of CPU threads that it uses.
    """
    kind = kind_of(options.model)
    threads = kind.use_threads(options.threads)
    return kind.load(options.model, options.engine, LoadContext(notice=notice)), threads


def describe(engine: Engine, threads: int, options: WorkerOptions) -> WorkerReady:
    """Return the properties and control values of a new stream of `engine`, and why its backend was chosen."""
    choice = chosen_backend(kind_of(options.model), options.engine)
    why = "" if choice is None else choice.why
    with engine.open() as probe:
        return WorkerReady(info=probe.info, controls=dict(probe.controls.values), threads=threads, why=why)
