"""Owns how the transformer takes actions: what a viewer does to camera and subject in each latent frame.

`ActionEmbedder` turns them into an addend of the time embedding; its weights are in the folder `actions/` next to a
stock transformer, which loads without them. Independent of streams, the cache and schedules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.conditioning.actions import ACTION_NAMES
from pipelines.core.errors import ModelLayoutError
from pipelines.files.checkpoints import listed, read_checkpoint
from pipelines.files.layout import read_json

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_TRAIN_AGAIN = "Write the folder with save_actions of the embedder that was trained with the transformer."


class ActionEmbedder(nn.Module):
    """Two linear layers without biases, with a SiLU between them, so that actions of 0 add exactly 0."""

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        """dim: of the transformer's time embedding. hidden: width between the layers; None: dim."""
        super().__init__()
        self.linear_1 = nn.Linear(len(ACTION_NAMES), hidden or dim, bias=False)
        self.linear_2 = nn.Linear(hidden or dim, dim, bias=False)

    @property
    def dim(self) -> int:
        """Width of the result."""
        return self.linear_2.out_features

    @property
    def hidden(self) -> int:
        """Width between the layers."""
        return self.linear_1.out_features

    def forward(self, actions: torch.Tensor) -> torch.Tensor:
        """[B, F, 5] in [-1, 1] -> [B, F, dim], in the weights' dtype."""
        embedding: torch.Tensor = self.linear_2(F.silu(self.linear_1(actions.to(self.linear_1.weight.dtype))))
        return embedding


def save_actions(embedder: ActionEmbedder, folder: Path, gains: Sequence[float] | None = None) -> None:
    """Write config.json and model.safetensors into `folder` (a model's `actions/`), in the weights' dtype.

    gains: factors by which `load_actions` scales the actions, in the order of ACTION_NAMES, for a model that responds
    too weakly; None: no scaling.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"names": list(ACTION_NAMES), "dim": embedder.dim, "hidden": embedder.hidden}
    if gains is not None:
        config["gains"] = list(gains)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in embedder.state_dict().items()}
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})


def load_actions(folder: Path, *, dim: int, device: torch.device, dtype: torch.dtype) -> ActionEmbedder:
    """Load the embedder of a model folder for inference, at least in float32, as the time embedding is.

    dim: of the transformer's time embedding. The configuration's gains are folded into the weights. Raises
    ModelLayoutError for other names, sizes, gains or weights, and for numbers that are not finite.
    """
    hidden, gains = _checked_config(folder / _CONFIG, dim)
    checkpoint = read_checkpoint(folder / _WEIGHTS)
    with torch.device("meta"):
        embedder = ActionEmbedder(dim, hidden)
    expected = {name: tuple(tensor.shape) for name, tensor in embedder.state_dict().items()}
    if checkpoint.shapes.keys() != expected.keys():
        raise ModelLayoutError(
            f"{checkpoint.source} holds {listed(checkpoint.shapes)}, not {listed(expected)}.", _TRAIN_AGAIN
        )
    for name, tensor in checkpoint.tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise ModelLayoutError(
                f"{checkpoint.source}: {name} is {tuple(tensor.shape)}, not {expected[name]}.", _TRAIN_AGAIN
            )
        if not torch.isfinite(tensor).all():
            raise ModelLayoutError(f"{checkpoint.source}: {name} has numbers that are not finite.", _TRAIN_AGAIN)
    wide_dtype = torch.promote_types(dtype, torch.float32)
    weights = {name: tensor.to(device=device, dtype=wide_dtype) for name, tensor in checkpoint.tensors.items()}
    weights["linear_1.weight"] = weights["linear_1.weight"] * torch.tensor(gains, device=device, dtype=wide_dtype)
    embedder.load_state_dict(weights, assign=True)
    return embedder.eval().requires_grad_(False)


def _checked_config(file: Path, dim: int) -> tuple[int, list[float]]:
    """Return the width between the layers, and the gains."""
    config = read_json(file)
    names = config.get("names")
    if names != list(ACTION_NAMES):
        raise ModelLayoutError(
            f"{file} names the actions {names!r}.", f"They must be, in this order: {', '.join(ACTION_NAMES)}."
        )
    if config.get("dim") != dim:
        raise ModelLayoutError(
            f"{file} has dim {config.get('dim')!r}; the transformer's time embedding is {dim} wide.",
            "Use the actions that were trained with this transformer.",
        )
    hidden = config.get("hidden")
    if not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 1:
        raise ModelLayoutError(f"{file} has hidden {hidden!r}.", "It is the width between the two layers, 1 or more.")
    gains = config.get("gains", [1.0] * len(ACTION_NAMES))
    fit = isinstance(gains, list) and len(gains) == len(ACTION_NAMES)
    if not fit or not all(type(gain) in (int, float) and 0 < gain < math.inf for gain in gains):
        raise ModelLayoutError(
            f"{file} has gains {gains!r}.", f"They are {len(ACTION_NAMES)} numbers above 0, one for each name."
        )
    return hidden, gains
