"""Owns the contract of a model kind: everything that the program needs of a family of models. Imports no torch."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipelines.backends.base import KINDS, Backend
from pipelines.backends.table import BACKENDS, BackendChoice, choose_backend
from pipelines.core.contracts import Engine, Notify
from pipelines.core.errors import ModelError
from pipelines.core.origin import Origin
from pipelines.core.tick_log import TickLog
from pipelines.files.loader_options import LoaderOptions
from pipelines.files.lora_files import described_loras

if TYPE_CHECKING:
    import torch

    from cache.kv.policies import KVPolicy
    from pipelines.conditioning.base import ConditionerFactory

logger = logging.getLogger(__name__)
_UNASKED_PX = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadContext:
    """What a program passes to loading besides the user's choices. It stays in the process and is not part of a take.

    notice: receives sentences that the user should see. tick_log: for the engine; None: it creates one. backends: by
    name. conditioners: what may steer a slot or chunk; None: CONDITIONERS. policies: of KV caches, by name; None:
    POLICIES. prepare: let the engine compile parts in other processes while it runs; False: it runs as it is.
    """

    notice: Notify
    tick_log: TickLog | None = None
    backends: Mapping[str, Backend] = field(default_factory=lambda: BACKENDS)
    conditioners: tuple[ConditionerFactory, ...] | None = None
    policies: Mapping[str, type[KVPolicy]] | None = None
    prepare: bool = True

    def backend(self, requested: str, kind: str, device: torch.device) -> Backend:
        """Return the requested backend for a kind of model on a device. Raises ModelError, with the remedy."""
        choice = choose_backend(requested, kind, device, self.backends)
        logger.info("backend %s", choice.reason)
        return choice.backend


def engine_origin(model: str, options: LoaderOptions, backend: str, *, bundled: bool) -> Origin:
    """Return what another process loads the same engine from, run as the backend runs it without plans.

    bundled: whether the model is; at a large size its parts are not compiled unasked, which takes gigabytes.
    """
    chosen = replace(options, backend=backend)
    return Origin(
        model=model,
        module="pipelines.load",
        function="load_engine",
        arguments={"model": model, "options": chosen, "prepare": False},
        bundled=bundled and options.width * options.height <= _UNASKED_PX,
        lora=described_loras(options.loras),
    )


def chosen_backend(
    kind: ModelKind, options: LoaderOptions, backends: Mapping[str, Backend] = BACKENDS
) -> BackendChoice | None:
    """Return the backend that `options` choose for models of a kind, and why; None: such models have no networks.

    Raises ModelError, with the remedy.
    """
    if kind.name not in KINDS:
        return None
    from pipelines.files.precision import choose_device

    return choose_backend(options.backend, kind.name, choose_device(options.device), backends)


class ModelKind(ABC):
    """One kind of model. It has no state; its methods import what they need when they are called.

    name: of the kind. uses_torch: whether its engine computes with torch and its threads; a kind that does not never
    imports torch and starts at once. built_in: names of models that need no files and are always available.
    """

    name: ClassVar[str]
    uses_torch: ClassVar[bool] = True
    built_in: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognises(self, model: str) -> bool:
        """Return whether a name (bundled, a folder, a file, a hub id) is of this kind. Reads names and headers only."""

    @abstractmethod
    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """Load the engine of a model of this kind. Raises ModelError, its subclasses or InputError, with the remedy."""

    def weight_files(self, model: str, options: LoaderOptions) -> list[tuple[str, Path]]:
        """Return every weight file that the engine reads, with its part of the model, in a fixed order; default: none.

        A take's digest of the weights is computed from them.
        """
        return []

    def use_threads(self, threads: int) -> int:
        """Set the number of CPU threads of kernels; 0: the library's default. Returns the number in use."""
        if not self.uses_torch:
            return 1
        import torch

        if threads:
            torch.set_num_threads(threads)
        return torch.get_num_threads()

    def describe(self, folder: Path) -> str:
        """Describe a model folder for `zoetrope models`; "" for one of another kind. Raises ModelError."""
        return ""

    def published(self) -> str:
        """List published models of this kind for `zoetrope models`; "" for none."""
        return ""

    def download(self, model: str, *, allow_pickle: bool, notice: Notify) -> Path:
        """Fetch a model into the hub cache and return its path. Raises ModelError or a subclass."""
        raise ModelError(f"{model} cannot be downloaded: it is built in.", f"Use it as it is: --model {model}.")
