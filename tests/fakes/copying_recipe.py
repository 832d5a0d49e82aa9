"""A recipe whose files are a copy of the part's weights, and whose calls compute with them."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelError
from pipelines.core.parts import Part, PartCall, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyingRecipe:
    """fails: how `build` ends: "": well; "error": with a ModelError; "killed": with its process."""

    name: str = "copying"
    title: str = "copied"
    steps: int = 1
    samples: int = 0
    bakes_weights: bool = True
    loads_at_once: bool = False
    fails: str = ""

    def open_axes(self, part: Part) -> Mapping[str, int]:
        return {}

    def key(self, part: Part) -> Mapping[str, str]:
        return {"options": self.fails}

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        progress(f"copying {part.name}")
        if self.fails == "error":
            raise ModelError("The copier is out of toner.", "Refill it.")
        if self.fails == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save(part.module.state_dict(), folder / "weights.pt")

    def update(self, part: Part, call: PartCall) -> None:
        raise AssertionError("its files contain the weights")

    def load(self, part: Part, folder: Path) -> PartCall:
        module = copy.deepcopy(part.module)
        module.load_state_dict(torch.load(folder / "weights.pt"))

        def call(*inputs: torch.Tensor) -> Tensors:
            assert tuple(inputs[0].shape) == tuple(next(iter(part.inputs.values())).shape), "another batch"
            with torch.no_grad():
                return tuple(module(*inputs))

        return call
