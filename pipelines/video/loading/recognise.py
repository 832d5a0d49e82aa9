"""Owns the question which family a checkpoint is of, and which part of its file holds the weights.

Several families share all names and shapes (Self-Forcing, Causal Forcing, LongLive, ...): what the user names counts
first, then zoetrope.json, the file's name, the parts of the file. The answer says why. Knows no device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from pipelines.core.errors import ModelError
from pipelines.files.checkpoints import Checkpoint, read_checkpoint
from pipelines.files.layout import Component, find_weights
from pipelines.video.wan.config import WanConfig

from .checkpoint_keys import refuse_others
from .families import CONTAINERS, FAMILIES, SIZES, VideoFamily, family_named, family_of_containers, family_of_path
from .folders import SETTINGS_FILE
from .source import VideoSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A checkpoint's weights, what they are taken for, and why; asked: the user or the folder named the family."""

    checkpoint: Checkpoint
    family: VideoFamily
    why: str
    asked: bool = False


def recognise(source: VideoSource, family: str = "") -> Recognised:
    """Read a transformer's weights and say which family they are of. family: what the user named, or "".

    Raises ModelLayoutError for files of another kind, ModelError when nothing tells the family.
    """
    found = _recognise(source, family)
    refuse_others(found.checkpoint.tensors, str(found.checkpoint.source))
    return found


def check_published_size(found: Recognised, config: WanConfig) -> None:
    """Raise ModelError when the weights have a published size that their family does not come in."""
    size = SIZES.get(config.dim)
    family = found.family
    if size is None or size in family.sizes:
        return
    fitting = [other.name for other in FAMILIES.values() if size in other.sizes]
    raise ModelError(
        f"{found.checkpoint.source} has the size of Wan 2.1 {size}, but it was taken for {family.title} ({found.why}), "
        f"which is published as {' and '.join(family.sizes)} only.",
        f"Name its family: --family {' or '.join(fitting)}.",
    )


def _recognise(source: VideoSource, family: str) -> Recognised:
    own = str(source.folder.settings.get("family", "")) if source.checkpoint is None else ""
    if family or source.family or own:
        chosen = family_named(family or source.family or own)
        why = "as named" if family or source.family else f"{SETTINGS_FILE} says so"
        return Recognised(checkpoint=_read(source, chosen.containers), family=chosen, why=why, asked=True)
    # Of a whole folder its own name counts only, of a checkpoint also the names of the folders that it lies in.
    place = source.checkpoint or PurePath(source.folder.folder.resolve().name)
    hinted = family_of_path(place)
    if hinted is not None:
        why = f"by the name {place.name}" if hinted.hint.search(place.name) else f"by the name of a folder of {place}"
        return Recognised(checkpoint=_read(source, hinted.containers), family=hinted, why=why)
    checkpoint = _read(source, CONTAINERS)
    signed = family_of_containers(checkpoint.parts)
    if signed is not None:
        why = f"by its parts {', '.join(sorted(checkpoint.parts))}"
        return Recognised(checkpoint=_read(source, signed.containers), family=signed, why=why)
    if source.checkpoint is None:
        return Recognised(checkpoint=checkpoint, family=family_named("wan"), why="a Wan folder that says nothing else")
    refuse_others(checkpoint.tensors, str(checkpoint.source))
    raise ModelError(
        f"{place} is a Wan 2.1 transformer, but neither its name nor its parts tell how it was trained: Self-Forcing, "
        "Causal Forcing and others have the same weights' names.",
        f"Name its family with --family: {', '.join(FAMILIES)}.",
    )


def _read(source: VideoSource, containers: Sequence[str]) -> Checkpoint:
    if source.checkpoint is not None:
        return read_checkpoint(source.checkpoint, containers)
    place = source.folder.transformer
    if place == source.folder.folder:
        return read_checkpoint(place, containers)
    component = Component(name="transformer", folder=place, class_name="WanTransformer3DModel", config={})
    parts = [read_checkpoint(file, containers) for file in find_weights(component, allow_pickle=True).files]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return replace(parts[0], source=place, tensors=tensors)
