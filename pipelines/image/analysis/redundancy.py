"""Owns what of a network's work repeats: how much the output of each of its blocks changes from frame to frame at the
same step, and from step to step within a frame.

Reads the blocks of a UNet by hooks while a stream plays, one slot at a time. Independent of caches and of pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cache.features.steps.contract import relative_l1
from pipelines.core.controls import Control
from pipelines.core.errors import ModelError
from pipelines.core.types import Picture
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.networks import UNetDenoiser

from .play import Progress, Values, framed

Outputs = Mapping[str, torch.Tensor]
Array = npt.NDArray[np.float64]
_EAGER = "eager"  # the backend that calls every layer of a network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Redundancy:
    """Relative changes, mean |now - before| / mean |before|.

    blocks: names, in the order in which they run; the last is the network's output. frames: [blocks, frames - 1,
    steps], from the frame before, at the same step. steps: [blocks, steps - 1], from the step before, mean over the
    frames. output_steps: [steps, steps], of the output between any two steps, relative to the earlier one, likewise.
    picture: [H / factor, W / factor], mean |difference| of the finished pictures from frame to frame, in levels.
    """

    blocks: tuple[str, ...]
    frames: Array
    steps: Array
    output_steps: Array
    picture: Array


def unet_of(engine: ImageEngine) -> Any:
    """Return the UNet that an engine runs. Raises ModelError where its blocks cannot be read."""
    runtime = engine.core.runtime
    if runtime.backend != _EAGER or not isinstance(runtime.denoiser, UNetDenoiser):
        raise ModelError(
            f"The backend {runtime.backend} runs the network as a whole, so its blocks cannot be measured.",
            "Analyse with --backend eager; the profile then serves every backend.",
        )
    return runtime.denoiser.unet


def blocks_of(unet: Any) -> dict[str, nn.Module]:
    """Return the layers of a UNet that are measured, by name, in the order in which they run."""
    found: dict[str, nn.Module] = {"first convolution": unet.conv_in}
    for number, block in enumerate(unet.down_blocks, 1):
        found |= _layers(f"down {number}", block)
    if unet.mid_block is not None:
        found |= _layers("middle", unet.mid_block)
    for number, block in enumerate(unet.up_blocks, 1):
        found |= _layers(f"up {number}", block)
    found["output"] = unet.conv_out
    return found


def _layers(name: str, block: nn.Module) -> dict[str, nn.Module]:
    """Return resnets and attentions of a block in the order of their numbers."""
    parts = dict(block.named_children())
    kinds = {"resnets": "resnet", "attentions": "attention"}
    layers = {
        (index, kind): layer
        for attribute, kind in kinds.items()
        for index, layer in enumerate(_list(parts.get(attribute)), 1)
    }
    ordered = sorted(layers.items(), key=lambda item: (item[0][0], item[0][1] == "attention"))
    return {f"{name} {kind} {index}": layer for (index, kind), layer in ordered}


def _list(layers: nn.Module | None) -> Sequence[nn.Module]:
    return list(layers) if isinstance(layers, nn.ModuleList) else []


@contextmanager
def recorded(blocks: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Fill a dictionary with the output [1, ...] of each block, of the first row, whenever the network runs."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            outputs[name] = first[:1].detach().clone()

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def measured(
    engine: ImageEngine, pictures: Sequence[Picture], control: Values, progress: Progress, what: str
) -> Redundancy:
    """Play pictures, at least one, uncached and one at a time. Raises ModelError where blocks cannot be read."""
    blocks = blocks_of(unet_of(engine))
    by_frame: list[Array] = []  # of [blocks, steps]
    by_step: list[Array] = []  # of [blocks, steps - 1]
    tables: list[Array] = []  # of [steps, steps]
    shown: list[Picture] = []
    last: list[Outputs] = []
    with (
        recorded(blocks) as outputs,
        engine.open(Control.of({**control, "depth": 1, "reuse": "off"})) as stream,
    ):
        for seq, picture in enumerate(pictures):
            progress(what, seq, len(pictures))
            assert stream.push(framed(picture, seq))
            steps: list[Outputs] = []
            while stream.active:
                engine.tick()
                steps.append(dict(outputs))
            shown += [frame.image for frame in stream.pull()]
            if last:
                by_frame.append(_columns(blocks, list(zip(steps, last, strict=True))))
            by_step.append(_columns(blocks, list(zip(steps[1:], steps[:-1], strict=True))))
            tables.append(np.array([[_change(now["output"], then["output"]) for now in steps] for then in steps]))
            last = steps
        shown += [frame.image for frame in stream.flush()]
    progress(what, len(pictures), len(pictures))
    return Redundancy(
        blocks=tuple(blocks),
        frames=np.stack(by_frame, axis=1) if by_frame else np.zeros((len(blocks), 0, len(last))),
        steps=np.mean(by_step, axis=0),
        output_steps=np.mean(tables, axis=0),
        picture=_changed(shown, engine.core.codec.factor),
    )


def _columns(blocks: Mapping[str, nn.Module], pairs: Sequence[tuple[Outputs, Outputs]]) -> Array:
    """Return [blocks, pairs]: how much each block's output changed."""
    return np.array([[_change(now[name], before[name]) for now, before in pairs] for name in blocks]).reshape(
        len(blocks), len(pairs)
    )


def _change(now: torch.Tensor, before: torch.Tensor) -> float:
    change = float(relative_l1(now.float(), before.float())[0])
    return change if np.isfinite(change) else 0.0  # zeros before: nothing to change


def _changed(shown: Sequence[Picture], factor: int) -> Array:
    height, width = shown[0].shape[:2]
    total = np.zeros((height // factor, width // factor))
    for before, after in pairwise(shown):
        difference = np.abs(after.astype(np.int16) - before).astype(np.float64)
        total += difference.reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3, 4))
    return total / max(1, len(shown) - 1)
