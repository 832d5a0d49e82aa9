"""The contract of a model kind: all that the program asks of a family of models. Imports no tensor library."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pipelines.backends.base import Backend
from pipelines.backends.table import BACKENDS, choose_backend
from pipelines.core.contracts import Engine
from pipelines.core.errors import ModelError
from pipelines.core.tick_log import TickLog
from pipelines.files.loader_options import LoaderOptions

if TYPE_CHECKING:
    import torch

    from cache.kv.policies import KVPolicy
    from pipelines.conditioning.base import ConditionerFactory

logger = logging.getLogger(__name__)

Notice = Callable[[str], None]
"""Gets a sentence that the user should see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadContext:
    """What a program hands to loading beside the user's choices; it stays in the process and is in no take.

    notice: gets sentences that the user should see. tick_log: the engine's; None: one of its own. backends: by name.
    conditioners: what may steer a slot or chunk; None: all that Zoetrope has.
    policies: KV policies by name; None: all that Zoetrope has.
    """

    notice: Notice
    tick_log: TickLog | None = None
    backends: Mapping[str, Backend] = field(default_factory=lambda: BACKENDS)
    conditioners: tuple[ConditionerFactory, ...] | None = None
    policies: Mapping[str, type[KVPolicy]] | None = None

    def backend(self, requested: str, kind: str, device: torch.device) -> Backend:
        """The one that was asked for, for a kind of models on a device. Raises ModelError, with the remedy."""
        choice = choose_backend(requested, kind, device, self.backends)
        logger.info("backend %s", choice.reason)
        return choice.backend


class ModelKind(ABC):
    """One kind of model. It has no state; its methods import what they need when they are called.

    name: of the kind. uses_torch: whether its engine calculates with the tensor library and its threads; a kind without
    never imports it and starts at once. built_in: names of models that need no files and are always there.
    """

    name: ClassVar[str]
    uses_torch: ClassVar[bool] = True
    built_in: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognises(self, model: str) -> bool:
        """Whether a name (bundled, a folder, a file, a hub id) means this kind. Reads names and headers only."""

    @abstractmethod
    def load(self, model: str, options: LoaderOptions, context: LoadContext) -> Engine:
        """The engine of a model of this kind. Raises ModelError and its kinds, InputError, each with the remedy."""

    def weight_files(self, model: str, options: LoaderOptions) -> list[tuple[str, Path]]:
        """Every weight file that the engine reads, with the part it belongs to, in a fixed order; none by default.

        A take's digest of the weights is made of them.
        """
        return []

    def use_threads(self, threads: int) -> int:
        """Let kernels use so many CPU threads from now on; 0: the library's own choice. Returns how many they use."""
        if not self.uses_torch:
            return 1
        import torch

        if threads:
            torch.set_num_threads(threads)
        return torch.get_num_threads()

    def describe(self, folder: Path) -> str:
        """What `zoetrope models` says of a model's folder; "" for one of another kind. Raises ModelError."""
        return ""

    def published(self) -> str:
        """What `zoetrope models` says of published models of this kind; "" for nothing."""
        return ""

    def download(self, model: str, *, allow_pickle: bool, notice: Notice) -> Path:
        """Fetch a model into the hub's cache; returns where it is. Raises ModelError and its kinds."""
        raise ModelError(f"{model} cannot be downloaded: it is built in.", f"Use it as it is: --model {model}.")
