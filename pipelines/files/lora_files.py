"""Owns a user's choice of a LoRA file: its source and its weight. Independent of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pipelines.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """One LoRA and its weight, which is multiplied by the live scale.

    source: a local .safetensors file, or a hub id such as latent-consistency/lcm-lora-sdv1-5 (optionally followed by
    the file's name inside the repository: owner/name/file.safetensors).
    """

    source: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("A LoRA was given without a name.", "Give a .safetensors file or a hub id.")
        if not math.isfinite(self.weight) or abs(self.weight) > 10:
            raise InputError(f"The LoRA weight {self.weight} is out of range.", "Give a number from -10 to 10.")

    @property
    def hub_id(self) -> str:
        """The source without a file name: owner/name for a hub id; meaningless for a local path."""
        return "/".join(self.source.split("/", 2)[:2])


def described_loras(files: Sequence[LoraFile]) -> str:
    """Name the files and their weights, without folders: "style.safetensors@0.8 merged"; "" for none."""
    return ", ".join(f"{PurePath(file.source).name}@{file.weight:g} merged" for file in files)
