"""Owns the decision which family a checkpoint belongs to, and which part of its file holds the weights.

Several families share all names and shapes (Self-Forcing, Causal Forcing, LongLive, ...): the user's choice comes
first, then zoetrope.json, the file's name, the parts of the file. The result says why. Independent of devices.
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
    """A checkpoint's weights, their family, and why it was chosen. named: whether the user or the folder named it."""

    checkpoint: Checkpoint
    family: VideoFamily
    why: str
    named: bool = False


def recognise(source: VideoSource, family: str = "") -> Recognised:
    """Read a transformer's weights and determine their family. family: named by the user, or "".

    Raises ModelLayoutError for files of another kind, ModelError if nothing identifies the family.
    """
    found = _recognise(source, family)
    refuse_others(found.checkpoint.tensors, str(found.checkpoint.source))
    return found


def check_published_size(found: Recognised, config: WanConfig) -> None:
    """Raise ModelError if the weights have a published size that their family does not come in."""
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
        return Recognised(checkpoint=_read(source, chosen.containers), family=chosen, why=why, named=True)
    # For a complete folder only its own name counts, for a checkpoint also the names of the folders that contain it.
    path = source.checkpoint or PurePath(source.folder.folder.resolve().name)
    hinted = family_of_path(path)
    if hinted is not None:
        why = f"by the name {path.name}" if hinted.hint.search(path.name) else f"by the name of a folder of {path}"
        return Recognised(checkpoint=_read(source, hinted.containers), family=hinted, why=why)
    checkpoint = _read(source, CONTAINERS)
    identified = family_of_containers(checkpoint.parts)
    if identified is not None:
        why = f"by its parts {', '.join(sorted(checkpoint.parts))}"
        return Recognised(checkpoint=_read(source, identified.containers), family=identified, why=why)
    if source.checkpoint is None:
        return Recognised(checkpoint=checkpoint, family=family_named("wan"), why="a Wan folder without any other hint")
    refuse_others(checkpoint.tensors, str(checkpoint.source))
    raise ModelError(
        f"{path} is a Wan 2.1 transformer, but neither its name nor its parts tell how it was trained: Self-Forcing, "
        "Causal Forcing and others use the same weight names.",
        f"Name its family with --family: {', '.join(FAMILIES)}.",
    )


def _read(source: VideoSource, containers: Sequence[str]) -> Checkpoint:
    if source.checkpoint is not None:
        return read_checkpoint(source.checkpoint, containers)
    path = source.folder.transformer
    if path == source.folder.folder:
        return read_checkpoint(path, containers)
    component = Component(name="transformer", folder=path, class_name="WanTransformer3DModel", config={})
    parts = [read_checkpoint(file, containers) for file in find_weights(component, allow_pickle=True).files]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return replace(parts[0], source=path, tensors=tensors)
