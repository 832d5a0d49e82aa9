"""Owns how a model name is resolved to files: a model folder, a checkpoint near one, a family's name or a hub id.

Works on names and folders; reads no weights. Files in the hub's cache are used without contacting the hub.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipelines.core.contracts import Notify
from pipelines.core.errors import ModelLayoutError, ModelNotFoundError
from pipelines.files import hub
from pipelines.files.checkpoints import find_checkpoint, listed, names_in, weight_files

from .families import FAMILIES, VideoFamily, family_of_path
from .folders import ACTIONS_FOLDER, VideoFolder, folders_near, is_video_folder, read_video_folder

logger = logging.getLogger(__name__)
BASE_ID = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
_BASE_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_TRAINING_SUFFIXES = (".pt", ".pth")
_MODEL_PARTS = ("transformer", *_BASE_PARTS, ACTIONS_FOLDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """Where the parts of a model are. checkpoint: the transformer's weights; None: those in the folder. family: its
    name if the user named it, else ""."""

    name: str
    folder: VideoFolder
    checkpoint: Path | None = None
    family: str = ""


def is_video_model(model: str) -> bool:
    """Whether a name refers to a video model: a Wan folder, a checkpoint, a family or its repository. Loads nothing."""
    if model in FAMILIES:
        return True
    path = hub.BUNDLED_FOLDER / model if model in hub.bundled_names() else Path(model).expanduser()
    if path.exists():
        return is_video_folder(path) or (not _is_image_model(path) and any(map(_may_be_video, weight_files(path))))
    repository = "/".join(model.split("/")[:2])
    if repository in (BASE_ID, *(family.repository for family in FAMILIES.values() if family.repository)):
        return True
    cached = hub.cached_folder(model) if hub.is_hub_id(model) else None
    return cached is not None and is_video_folder(cached)


def resolve_video(model: str, *, base: str = "", notice: Notify = logger.warning) -> VideoSource:
    """Find the files of a video model.

    model: a bundled name, a Wan folder, a checkpoint (or its folder), a name of FAMILIES, or a hub id with or without
    a file name. base: the Wan folder that provides a checkpoint's codec and text encoder; "": one near the checkpoint,
    else the one in the hub's cache. Raises ModelNotFoundError, ModelLayoutError, HubUnreachableError.
    """
    path = hub.BUNDLED_FOLDER / model if model in hub.bundled_names() else Path(model).expanduser()
    if path.exists():
        return _local(path, base, notice)
    if model in FAMILIES:
        return _of_family(FAMILIES[model], base, notice)
    owner, _, rest = model.partition("/")
    name, _, file = rest.partition("/")
    hub_id = f"{owner}/{name}"
    if not hub.is_hub_id(hub_id):
        raise ModelNotFoundError(
            f"There is no video model {model!r}.",
            f"Give a Wan 2.1 folder, a checkpoint, a hub id, or one of: {', '.join(FAMILIES)}.",
        )
    if file:
        return _beside(_file_of(hub_id, file, notice), model, base, notice)
    return _repository(hub_id, base, notice)


def video_weight_files(model: str, base: str = "") -> list[tuple[str, Path]]:
    """Return (part, weight file) for all weight files of a model. model, base: see `resolve_video`."""
    source = resolve_video(model, base=base, notice=lambda text: None)
    folder = source.folder
    parts = [("transformer", source.checkpoint or folder.transformer), ("vae", folder.vae)]
    parts += [("text_encoder", folder.text_encoder), *([("tiny_vae", folder.tiny_vae)] if folder.tiny_vae else [])]
    parts += [("actions", folder.actions)] if folder.actions else []
    return [(name, file) for name, path in parts for file in weight_files(path)]


def _local(path: Path, base: str, notice: Notify, *, name: str = "") -> VideoSource:
    name = name or path.resolve().name
    if is_video_folder(path):
        return VideoSource(name=name, folder=read_video_folder(path))
    if not weight_files(path):
        raise ModelLayoutError(
            f"{path} is neither a Wan 2.1 model folder nor a checkpoint.",
            "Give a folder with model_index.json, or a .safetensors, .pt or .pth file; see docs/video-models.md.",
        )
    return _beside(find_checkpoint(path), name, base, notice)


def _repository(hub_id: str, base: str, notice: Notify) -> VideoSource:
    """Resolve a repository without a file name: a complete model, or the only family that is published there."""
    folder = hub.cached_folder(hub_id)
    if folder is not None and (is_video_folder(folder) or weight_files(folder)):
        return _local(folder, base, notice, name=hub_id)
    families = [family for family in FAMILIES.values() if family.repository == hub_id]
    if len(families) == 1:
        return _of_family(families[0], base, notice)
    if families:
        choices = [f"{hub_id}/{file}" for family in families for file in family.files]
        raise ModelLayoutError(f"{hub_id} holds several models.", f"Name one: {', '.join(choices)}.")
    return _local(hub.download(hub_id, parts=_MODEL_PARTS, notice=notice), base, notice, name=hub_id)


def _of_family(family: VideoFamily, base: str, notice: Notify) -> VideoSource:
    if not family.repository:
        raise ModelNotFoundError(
            f"{hub.BUNDLED_FOLDER / family.name} is missing: {family.title} comes with Zoetrope and is not published "
            "elsewhere.",
            "Restore the files of the checkout, or make the model as docs/mini-video.md describes.",
        )
    if family.name == "wan":
        notice(f"Wan 2.1 is used in diffusers' layout: {BASE_ID}.")
        return _repository(BASE_ID, base, notice)
    files = [_file_of(family.repository, file, notice) for file in family.files[: 2 if family.lora else 1]]
    return VideoSource(name=family.name, folder=_base(files[0], base, notice), checkpoint=files[0], family=family.name)


def _file_of(hub_id: str, file: str, notice: Notify) -> Path:
    """Return one file of a repository, from the cache or the hub."""
    folder = hub.cached_folder(hub_id)
    if folder is None or not (folder / file).is_file():
        folder = hub.download(hub_id, parts=("",), lora_file=file, notice=notice)
    return folder / file


def _beside(checkpoint: Path, name: str, base: str, notice: Notify) -> VideoSource:
    return VideoSource(name=name, folder=_base(checkpoint, base, notice), checkpoint=checkpoint)


def _base(checkpoint: Path, base: str, notice: Notify) -> VideoFolder:
    """Find the folder that provides codec and text encoder. Both sizes of Wan 2.1 share them."""
    if base:
        given = Path(base).expanduser()
        if not given.exists() and hub.is_hub_id(base):
            given = hub.cached_folder(base) or hub.download(base, parts=_BASE_PARTS, notice=notice)
        if not is_video_folder(given):
            raise ModelNotFoundError(
                f"{base} is not a Wan 2.1 model folder.",
                f"Give the folder of Wan 2.1 in diffusers' layout ({BASE_ID}) or in its original one.",
            )
        return read_video_folder(given, as_base=True)
    near = folders_near(checkpoint)
    if len(near) > 1:
        raise ModelLayoutError(
            f"There are several model folders near {checkpoint}: {listed(map(str, near))}.",
            "Name the one to use: --base.",
        )
    cached = None if near else hub.cached_folder(BASE_ID)
    if not near and cached is None:
        raise ModelNotFoundError(
            f"{checkpoint} holds only a transformer, and there is no Wan 2.1 folder with the autoencoder and the text "
            "encoder near it.",
            f"Name one with --base, or download it into the hub's cache: hf download {BASE_ID}.",
        )
    folder = near[0] if near else cached
    assert folder is not None
    notice(f"The autoencoder and the text encoder come from {folder}.")
    return read_video_folder(folder, as_base=True)


def _may_be_video(file: Path) -> bool:
    """Whether a weight file looks like a video model's, by its name, its header or its suffix."""
    if file.suffix in _TRAINING_SUFFIXES or family_of_path(PurePath(file.name)) is not None:
        return True
    names = names_in(file) if file.suffix == ".safetensors" else ()
    return any("patch_embedding." in name for name in names) and any("blocks.0." in name for name in names)


def _is_image_model(path: Path) -> bool:
    """Whether it is a diffusers folder of another kind, or a component with a configuration (autoencoder, UNet)."""
    return path.is_dir() and ((path / "model_index.json").is_file() or (path / "config.json").is_file())
